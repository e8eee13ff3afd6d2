#!/bin/sh
# profile.sh FILE LOAD...: runs this load with --profile, prints where the server's time
# went, and draws it as FILE.svg, a flame graph. Installs perf (Debian's) and inferno
# (crates.io, into .tools/bench/) when they are missing.
set -eu

cd "$(dirname "$0")/.."
file=$1
shift
bin=.tools/bench/bin
if ! command -v perf >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive \
        apt-get install --quiet=2 --yes --no-install-recommends linux-perf; } ||
        { echo "profile.sh: there is no perf; install it" >&2; exit 1; }
fi
[ -x $bin/inferno-flamegraph ] || cargo install --quiet --locked --root .tools/bench inferno@0.12.8

"$@" --profile "$file.data"
for by in dso symbol; do
    perf report --input "$file.data" --no-children --call-graph none --percent-limit 1 --sort $by \
        --stdio | sed '/^#/d; /^$/d; s/[ -]*$//'
    echo
done
perf script --input "$file.data" --no-inline 2>/dev/null | $bin/inferno-collapse-perf --quiet |
    $bin/inferno-flamegraph --quiet >"$file.svg"
echo "$file.svg"
