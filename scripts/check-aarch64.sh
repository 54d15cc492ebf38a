#!/usr/bin/env bash
# Builds Sheaf for aarch64, checks its library's symbols, and runs a program of that architecture with it under an
# emulator: natively, captured, and restarted from the aggregate with an empty stage. Needs the native release build.
#
# Exit status: 0 as it should be, 1 something differs, 2 what is needed could not be had.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scripts/fetch-aarch64.sh

tools=$root/target/aarch64
native=${CARGO_TARGET_DIR:-$root/target}/release
target=aarch64-unknown-linux-gnu
build() {
    RUSTC=$tools/rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$tools/gcc CARGO_PROFILE_DEV_DEBUG=0 \
        cargo build --quiet --target "$target" --target-dir "$tools/build" "$@"
}
build -p sheaf-flusher
build -p sheaf-shim --release
library=$tools/build/$target/release/libsheaf.so
scripts/check-symbols.sh "$library"

fail() { echo "check-aarch64: $*" >&2; exit 1; }
work=$(mktemp -d)
stage=$(mktemp -d /dev/shm/sheaf-aarch64-XXXXXX)
trap 'rm -rf "$work" "$stage"' EXIT
"$tools/gcc" -O1 -o "$work/state" tests/apps/trap_state.c

# The emulator does not know the clone that starts a flusher, so a native program captures first, and stays.
cat >"$work/job.sh" <<JOB
echo begun >ckpt/begun
"$tools/run" \${EMULATOR_PRELOAD:+-E "LD_PRELOAD=\$EMULATOR_PRELOAD"} ../state "\$1" || [ \$? = 7 ]
JOB
unset "${!SHEAF_@}"
export SHEAF_PATHS="$work/captured/ckpt/**" SHEAF_STAGE="$stage"
mkdir -p "$work"/{native,captured}/ckpt
for phase in write read; do
    (cd "$work/native" && bash ../job.sh "$phase" >../native.out)
    (cd "$work/captured" && EMULATOR_PRELOAD=$library "$native/sheaf" run -- bash ../job.sh "$phase" >../captured.out)
    diff -u "$work/native.out" "$work/captured.out" >&2 || fail "$phase: other answers than natively"
    [ "$(find "$work/captured/ckpt" -type f ! -path '*/.sheaf/*')" = "" ] || fail "$phase: files were not captured"
    # The node is lost, when nobody is at work on it any more.
    "$native/sheaf" drain
    rm -rf "${stage:?}"/*
done
"$tools/run" "$tools/build/$target/debug/sheaf" verify "$work/captured/ckpt/.sheaf" >&2 || fail "the store is not clean"
