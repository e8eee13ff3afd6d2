#!/bin/sh
# Builds the examples in JavaScript and Python into the folder that is named, with what
# host/tests/clients/install.sh gets. One that is newer than what it is made of is left
# as it is.
set -eu

out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"
tools=../../.tools/plugins

# Whether $1 is older than a file of the others.
is_old() {
    built=$1
    shift
    [ ! -f "$built" ] || [ -n "$(find "$@" ../../wit -newer "$built")" ]
}

if is_old "$out/emoji-js.wasm" js build.sh $tools/js; then
    $tools/npm/node_modules/.bin/componentize-qjs --wit ../../wit --world transformer \
        --js js/emoji.js --sync --output "$out/emoji-js.new" >&2
    mv "$out/emoji-js.new" "$out/emoji-js.wasm"
fi
if is_old "$out/emoji-python.wasm" python/emoji.py build.sh $tools/python; then
    $tools/venv/bin/componentize-py --quiet --wit-path ../../wit --world transformer \
        componentize --python-path python emoji --output "$out/emoji-python.new" >&2
    mv "$out/emoji-python.new" "$out/emoji-python.wasm"
fi
