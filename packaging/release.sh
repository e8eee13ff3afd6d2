#!/bin/sh
# Lays out what is released, from what `make release` has built: a directory tree
# to be unpacked over /usr/local, and an archive of it.
#
# Usage: packaging/release.sh PROGRAM COMPONENTS OUT
set -eu

program=$1
components=$2
out=$3

version=$("$program" --version | cut -d ' ' -f 2)
name=switchyard-$version-$(uname -m)-linux
tree=$out/$name
rm -rf "$tree"
mkdir -p "$tree/bin" "$tree/lib/switchyard/plugins" "$tree/share/doc/switchyard" \
    "$tree/share/man/man1" "$tree/share/bash-completion/completions" \
    "$tree/share/zsh/site-functions" "$tree/share/fish/vendor_completions.d" \
    "$tree/lib/systemd/system" "$tree/lib/sysusers.d"

# Without symbols for debuggers; those of panics stay.
strip --strip-debug -o "$tree/bin/switchyard" "$program"
sh packaging/self-contained.sh "$tree/bin/switchyard"
"$tree/bin/switchyard" man --directory "$tree/share/man/man1"
"$tree/bin/switchyard" completions bash >"$tree/share/bash-completion/completions/switchyard"
"$tree/bin/switchyard" completions zsh >"$tree/share/zsh/site-functions/_switchyard"
"$tree/bin/switchyard" completions fish >"$tree/share/fish/vendor_completions.d/switchyard.fish"
for component in "$components"/*.wasm; do
    case $component in
        # It is inside the program.
        */guest-core.wasm) ;;
        *) cp "$component" "$tree/lib/switchyard/plugins" ;;
    esac
done
cp packaging/systemd/switchyard.service "$tree/lib/systemd/system"
cp packaging/systemd/switchyard.sysusers.conf "$tree/lib/sysusers.d/switchyard.conf"
cp README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT switchyard.example.toml "$tree/share/doc/switchyard"
cp -R examples/plugins "$tree/share/doc/switchyard/plugins"

tar -C "$out" --owner 0 --group 0 --sort name -czf "$out/$name.tar.gz" "$name"
echo "$out/$name.tar.gz"
