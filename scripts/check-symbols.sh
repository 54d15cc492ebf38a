#!/bin/sh
# Checks what libsheaf.so exports and what it needs: it must load beside every C library from glibc 2.17 on, and hook
# exactly what shim/exported-symbols.txt lists.
#
#   scripts/check-symbols.sh [--update] PATH/TO/libsheaf.so
#
# --update writes the list anew. Exit status: 0 as it should be, 1 something differs, 2 wrong use.
set -eu
LC_ALL=C
export LC_ALL

newest=2.17
list=$(dirname "$0")/../shim/exported-symbols.txt

update=no
if [ "${1-}" = --update ]; then
    update=yes
    shift
fi
if [ $# -ne 1 ] || [ ! -f "$1" ]; then
    echo "usage: $0 [--update] PATH/TO/libsheaf.so (build it with: cargo build --release -p sheaf-shim)" >&2
    exit 2
fi
library=$1

exported=$(nm -D --defined-only "$library" | awk '{ print $3 }' | sort)
if [ "$update" = yes ]; then
    printf '%s\n' "$exported" > "$list"
fi

status=0
if ! printf '%s\n' "$exported" | diff -u "$list" - >&2; then
    echo "$library exports other symbols than $list; if that is meant, run: $0 --update $library" >&2
    status=1
fi

versions=$(readelf -V "$library" | grep -o 'Name: GLIBC_[0-9.]*' | sed 's/Name: GLIBC_//' | sort -u)
highest=$(printf '%s\n%s\n' "$newest" "$versions" | sort -V | tail -n 1)
if [ "$highest" != "$newest" ]; then
    echo "$library needs glibc $highest, and must load with $newest:" >&2
    nm -D --undefined-only --with-symbol-versions "$library" | grep "GLIBC_$highest" >&2
    status=1
fi
if readelf -V "$library" | grep 'Name: GLIBC_[^0-9]' >&2; then
    echo "$library needs private symbols of glibc" >&2
    status=1
fi

needed=$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p' | grep -v -e '^libc\.so\.6$' -e '^libdl\.so\.2$' -e '^ld-linux-aarch64\.so\.1$' || true)
if [ -n "$needed" ]; then
    echo "$library needs more than the C library: $needed" >&2
    status=1
fi
exit $status
