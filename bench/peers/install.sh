#!/bin/sh
# Gets the servers that `make bench-peers` compares with: Bun and ws by npm into
# .tools/bench/, which git ignores; redis-server and nats-server from Debian when
# they are missing. Fails, and says so, when one cannot be had.
set -eu

packages="bun@1.4.5 ws@8.23.0"

cd "$(dirname "$0")/../.."
mkdir -p .tools/bench

if [ "$(cat .tools/bench/installed 2>/dev/null)" != "$packages" ]; then
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    # shellcheck disable=SC2086 # they are several words
    npm install --prefix .tools/bench --no-save --no-audit --no-fund --loglevel=error $packages ||
        { echo "install.sh: npm cannot install $packages" >&2; exit 1; }
    echo "$packages" >.tools/bench/installed
fi

for program in redis-server nats-server; do
    command -v $program >/dev/null && continue
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install.sh: there is no $program; install it" >&2
        exit 1
    fi
    { apt-get update --quiet=2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends \
            $program; } ||
        { echo "install.sh: apt-get cannot install $program" >&2; exit 1; }
done
