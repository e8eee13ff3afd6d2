#!/bin/sh
# Gets what tests run beside the server, such as WebSocket clients, and what plugins in
# other languages are built with, into .tools/ of the repository, and the packages of
# examples/node-host into its node_modules/; git ignores both. Does nothing when they
# are there already; fails, and says so,
# when they cannot be had.
#
# This does not install programs: node and python3 must be there.
set -eu

cd "$(dirname "$0")/../../.."
mkdir -p .tools

# npm_packages FOLDER PACKAGE@VERSION...: packages of Node.js in .tools/FOLDER/node_modules.
npm_packages() {
    folder=.tools/$1
    shift
    [ "$(cat "$folder/installed" 2>/dev/null)" = "$*" ] && return
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    npm install --prefix "$folder" --no-save --no-audit --no-fund --loglevel=error "$@" ||
        { echo "install.sh: npm cannot install $*" >&2; exit 1; }
    echo "$*" >"$folder/installed"
}

# pip_packages FOLDER PACKAGE==VERSION...: packages of Python in the environment .tools/FOLDER.
pip_packages() {
    folder=.tools/$1
    shift
    [ "$(cat "$folder/installed" 2>/dev/null)" = "$*" ] && return
    command -v python3 >/dev/null || { echo "install.sh: there is no python3" >&2; exit 1; }
    { python3 -m venv "$folder" &&
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; } ||
        { echo "install.sh: pip cannot install $*" >&2; exit 1; }
    echo "$*" >"$folder/installed"
}

# WebSocket clients.
npm_packages node ws@8.23.0
pip_packages python websockets==17.4

# As its lock file says, which is kept beside them to know them by.
example=examples/node-host
if ! cmp -s $example/package-lock.json $example/node_modules/installed; then
    command -v node >/dev/null || { echo "install.sh: there is no node (20 or later)" >&2; exit 1; }
    npm ci --prefix $example --no-audit --no-fund --loglevel=error ||
        { echo "install.sh: npm cannot install what $example/package-lock.json names" >&2; exit 1; }
    cp $example/package-lock.json $example/node_modules/installed
fi

# The Redis clients that host/tests/redis/clients.rs runs. A name with a number is an older version
# that many still use.
npm_packages redis-node redis@6.3.1 redis-4@npm:redis@4.7.1 ioredis@6.0.0 ioredis-5@npm:ioredis@5.4.2
pip_packages redis-python redis==8.1.0

# The libraries of host/tests/redis/applications.rs. broadcaster does not work with redis-py 8.
npm_packages applications-node socket.io@4.8.4 socket.io-client@4.8.4 \
    @socket.io/redis-adapter@8.3.0 redis@6.3.1 ioredis@5.4.2 graphql@16.15.0 \
    graphql-subscriptions@3.0.0 graphql-redis-subscriptions@2.7.0 @nestjs/common@12.5.1 \
    @nestjs/core@12.5.1 @nestjs/microservices@12.1.1 reflect-metadata@0.2.2 rxjs@7.8.2
pip_packages applications-python redis==7.1.0 python-socketio==5.18.1 aiohttp==3.14.5 \
    channels-redis==4.3.0 broadcaster==0.3.1

# What drives the browser in host/tests/console. It brings none of its own.
npm_packages browser playwright-core@1.65.1

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

# need PROGRAM PACKAGE...: has Debian's packages of a program installed if there is no such program.
need() {
    program=$1
    shift
    command -v "$program" >/dev/null || debian_packages "$program" "$@"
}

# debian_packages MISSING PACKAGE...: installs packages, because something is missing.
debian_packages() {
    missing=$1
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install.sh: there is no $missing; install $*" >&2
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

# What stands before nodes in host/tests/proxies.
need nginx nginx
need haproxy haproxy

# What counts instructions.
need valgrind valgrind

# What reads metrics, alert rules and their tests.
need promtool prometheus

# Applications in PHP and Ruby.
php -r 'exit(extension_loaded("redis") && (include "Predis/autoload.php") ? 0 : 1);' >/dev/null 2>&1 ||
    debian_packages "PHP with phpredis and Predis" php-cli php-redis php-predis
ruby -e 'require "active_support/all"; require "action_cable"; require "redis"' 2>/dev/null ||
    debian_packages "Ruby with redis-rb and Action Cable" ruby ruby-redis ruby-actioncable
