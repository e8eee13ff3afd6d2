#!/bin/sh
# Usage: reference.sh COMMIT DIRECTORY
#
# Checks a commit out into a directory and builds its server and components there, as `make
# production` does at that commit. Does nothing when they are there already.
set -eu

commit=$1
directory=$2

[ -f "$directory/built" ] && exit 0
git rev-parse --quiet --verify "$commit^{commit}" >/dev/null || {
    echo "reference.sh: there is no commit $commit here; a shallow clone has only the last ones" >&2
    exit 1
}
rm -rf "$directory"
git clone --quiet --shared --no-checkout . "$directory"
git -C "$directory" checkout --quiet --detach "$(git rev-parse "$commit")"
# Without this, a server under Valgrind ends when it first reads the time. It is in the commits
# since, and changes nothing else.
sed -i 's/^rustix = { version = "1.1", features = \["time"\] }/rustix = { version = "1.1", features = ["time", "use-libc-auxv"] }/' \
    "$directory/Cargo.toml"
make --directory="$directory" --no-print-directory production
touch "$directory/built"
