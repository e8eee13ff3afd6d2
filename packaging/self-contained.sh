#!/bin/sh
# Fails unless the program named needs nothing beside it but the C library, which
# every Linux with glibc has.
set -eu

needed=$(ldd "$1")
others=$(echo "$needed" | grep -vE '^\s*(linux-vdso|libc|libm|libgcc_s|/lib[^ ]*/ld-linux-[^ ]*|ld-linux-[^ ]*)[. ]' || true)
if [ -n "$others" ]; then
    echo "$1 needs what may not be there:" >&2
    echo "$others" >&2
    exit 1
fi
version=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
echo "$1 needs $(echo "$needed" | grep -oE 'lib(c|m|gcc_s)\.so\.[0-9]+' | sort -u | tr '\n' ' ')of $version or later"
