#!/bin/sh
# Gets what tests run beside the server, such as WebSocket clients, and what plugins in
# other languages are built with, into .tools/ of the repository, and the packages of
# examples/node-host into its node_modules/; git ignores both. Does nothing when they
# are there already; fails, and says so,
# when they cannot be had.
#
# This does not install programs: node and python3 must be there.
set -eu

ws=8.23.0
websockets=17.4

cd "$(dirname "$0")/../../.."
mkdir -p .tools

if [ "$(cat .tools/node/installed 2>/dev/null)" != "ws $ws" ]; then
    command -v node >/dev/null || { echo "install.sh: there is no node (18 or later)" >&2; exit 1; }
    npm install --prefix .tools/node --no-save --no-audit --no-fund --loglevel=error "ws@$ws" ||
        { echo "install.sh: npm cannot install ws@$ws" >&2; exit 1; }
    echo "ws $ws" >.tools/node/installed
fi

if [ "$(cat .tools/python/installed 2>/dev/null)" != "websockets $websockets" ]; then
    command -v python3 >/dev/null || { echo "install.sh: there is no python3" >&2; exit 1; }
    { python3 -m venv .tools/python &&
        .tools/python/bin/python -m pip install --quiet --disable-pip-version-check \
            "websockets==$websockets"; } ||
        { echo "install.sh: pip cannot install websockets==$websockets" >&2; exit 1; }
    echo "websockets $websockets" >.tools/python/installed
fi

# As its lock file says, which is kept beside them to know them by.
example=examples/node-host
if ! cmp -s $example/package-lock.json $example/node_modules/installed; then
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    npm ci --prefix $example --no-audit --no-fund --loglevel=error ||
        { echo "install.sh: npm cannot install what $example/package-lock.json names" >&2; exit 1; }
    cp $example/package-lock.json $example/node_modules/installed
fi

# The Redis clients that host/tests/redis/clients.rs runs. Under a name with a
# number is an older one that many still use.
redis_node="redis@6.3.1 redis-4@npm:redis@4.7.1 ioredis@6.0.0 ioredis-5@npm:ioredis@5.4.2"
redis_python=8.1.0

if [ "$(cat .tools/redis-node/installed 2>/dev/null)" != "$redis_node" ]; then
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    # shellcheck disable=SC2086 # they are several words
    npm install --prefix .tools/redis-node --no-save --no-audit --no-fund --loglevel=error $redis_node ||
        { echo "install.sh: npm cannot install $redis_node" >&2; exit 1; }
    echo "$redis_node" >.tools/redis-node/installed
fi

if [ "$(cat .tools/redis-python/installed 2>/dev/null)" != "redis $redis_python" ]; then
    command -v python3 >/dev/null || { echo "install.sh: there is no python3" >&2; exit 1; }
    { python3 -m venv .tools/redis-python &&
        .tools/redis-python/bin/python -m pip install --quiet --disable-pip-version-check \
            "redis==$redis_python"; } ||
        { echo "install.sh: pip cannot install redis==$redis_python" >&2; exit 1; }
    echo "redis $redis_python" >.tools/redis-python/installed
fi

# What drives the browser in host/tests/console. It brings none of its own.
playwright=1.65.1

if [ "$(cat .tools/browser/installed 2>/dev/null)" != "playwright-core $playwright" ]; then
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    npm install --prefix .tools/browser --no-save --no-audit --no-fund --loglevel=error \
        "playwright-core@$playwright" ||
        { echo "install.sh: npm cannot install playwright-core@$playwright" >&2; exit 1; }
    echo "playwright-core $playwright" >.tools/browser/installed
fi

# What plugins in JavaScript and Python are built with, at the versions that
# `switchyard plugin new` writes, kept so that the projects of the tests get them from
# here: npm's cache, and pip's wheels.
templates=host/cli/src/authors/templates
qjs=$(sed -n 's/.*"componentize-qjs": "\(.*\)".*/\1/p' $templates/js/package.json)
componentize_py=$(cat $templates/python/requirements.txt)

if [ "$(cat .tools/plugins/js 2>/dev/null)" != "componentize-qjs $qjs" ]; then
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    rm -rf .tools/plugins/npm
    mkdir -p .tools/plugins/npm
    npm install --cache .tools/plugins/npm-cache --prefix .tools/plugins/npm --no-save --no-audit \
        --no-fund --loglevel=error "componentize-qjs@$qjs" ||
        { echo "install.sh: npm cannot install componentize-qjs@$qjs" >&2; exit 1; }
    echo "componentize-qjs $qjs" >.tools/plugins/js
fi

if [ "$(cat .tools/plugins/python 2>/dev/null)" != "$componentize_py" ]; then
    command -v python3 >/dev/null || { echo "install.sh: there is no python3" >&2; exit 1; }
    mkdir -p .tools/plugins
    python3 -m pip download --quiet --disable-pip-version-check --dest .tools/plugins/wheels \
        "$componentize_py" ||
        { echo "install.sh: pip cannot download $componentize_py" >&2; exit 1; }
    { python3 -m venv .tools/plugins/venv &&
        .tools/plugins/venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --no-index --find-links .tools/plugins/wheels "$componentize_py"; } ||
        { echo "install.sh: pip cannot install $componentize_py" >&2; exit 1; }
    echo "$componentize_py" >.tools/plugins/python
fi

# What runs the tests.
nextest=0.9.143

if ! cargo nextest --version >/dev/null 2>&1 && [ ! -x .tools/cargo/bin/cargo-nextest ]; then
    # Without what updates it, and not optimised: two minutes instead of five on two cores.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_INCREMENTAL=false cargo install --quiet --locked \
        --debug --no-default-features --features default-no-update --root .tools/cargo \
        "cargo-nextest@$nextest" ||
        { echo "install.sh: cargo cannot install cargo-nextest@$nextest" >&2; exit 1; }
fi

# Has the packages of a program that is not there installed.
need() {
    program=$1
    shift
    command -v "$program" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install.sh: there is no $program; install $*" >&2
        exit 1
    fi
    { apt-get update --quiet=2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends \
            "$@"; } ||
        { echo "install.sh: apt-get cannot install $*" >&2; exit 1; }
}

# A real Redis to compare with and its tools: Debian's redis-server and redis-tools.
for program in redis-server redis-cli redis-benchmark; do
    need $program redis-server redis-tools
done

# What lies between nodes in host/tests/cluster, besides Redis, and what makes their
# certificates.
need nats-server nats-server
need openssl openssl

# A browser for the console, with letters to draw.
need chromium chromium fonts-dejavu-core

# What counts instructions.
need valgrind valgrind

# What reads metrics, alert rules and their tests.
need promtool prometheus
