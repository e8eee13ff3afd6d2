#!/bin/sh
# Prints what `make bench-peers` compares with, after install.sh.
set -eu

cd "$(dirname "$0")/../.."
redis=$(redis-server --version | sed 's/.* v=\([^ ]*\).*/\1/')
nats=$(nats-server --version | sed 's/.*v//')
read -r packages <.tools/bench/installed
echo "Versions: redis-server $redis, nats-server $nats, $packages, Node $(node --version), $(rustc --version)."
echo
