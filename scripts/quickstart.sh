#!/usr/bin/env bash
# Sheaf in a minute, on this machine, as this user: a small program writes checkpoints, its node-local stage is lost,
# and it restarts from the aggregate. Works in temporary directories of its own and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf '\nquickstart: %s\n' "$*" >&2; exit 1; }

say "Building (the first time this takes a minute or two)"
cargo build --release
bin=$(cargo metadata --no-deps --format-version 1 | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')/release

work=$(mktemp -d)
stage=$(mktemp -d /dev/shm/sheaf-quickstart-XXXXXX)
trap 'rm -rf "$work" "$stage"' EXIT
mkdir -p "$work/plain/ckpt" "$work/sheaf/ckpt"

# A program that knows nothing of Sheaf: it goes on from its newest checkpoint, and writes one every five steps.
cat >"$work/simulate.sh" <<'PROGRAM'
last=$1 step=0 value=12345
if [ -e ckpt/latest ]; then
    read -r step value <ckpt/latest
    echo "goes on from step $step"
fi
while [ "$step" -lt "$last" ]; do
    step=$((step + 1)) value=$(((value * 1103515245 + 12345) % 2147483648))
    if [ $((step % 5)) = 0 ]; then
        { echo "$step $value"; seq "$value" "$((value + 20000))"; } >ckpt/latest.tmp
        cp ckpt/latest.tmp "ckpt/step-$step"
        mv ckpt/latest.tmp ckpt/latest
    fi
done
echo "reached step $step, value $value"
PROGRAM

unset "${!SHEAF_@}"
export SHEAF_PATHS="$work/sheaf/ckpt/**" SHEAF_STAGE="$stage"
with_sheaf() { (cd "$work/sheaf" && LD_PRELOAD="$bin/libsheaf.so" "$@"); }

say "The program without Sheaf: 40 steps"
(cd "$work/plain" && bash ../simulate.sh 40)

say "The same program under Sheaf, stopped after 20 steps: LD_PRELOAD=libsheaf.so SHEAF_PATHS='.../ckpt/**'"
with_sheaf bash ../simulate.sh 20
"$bin/sheaf" drain

say "What lies on the file system now: one aggregate, and no file of the program"
find "$work/sheaf/ckpt" -type f -printf '%P  %s bytes\n'
files=$(find "$work/sheaf/ckpt" -type f ! -path '*/.sheaf/*' | wc -l)
[ "$files" = 0 ] || fail "$files files were not captured"
aggregates=("$work"/sheaf/ckpt/.sheaf/*.tar)
[ "${#aggregates[@]}" = 1 ] && [ -e "${aggregates[0]}" ] || fail "there should be one aggregate: ${aggregates[*]}"

say "sheaf ls -l"
"$bin/sheaf" ls -l "${aggregates[0]}"

say "tar tvf: the aggregate is a tar file, readable without Sheaf (names as they were when each file was published)"
tar tvf "${aggregates[0]}"

say "The node is gone: its stage is deleted. The program is started again, up to step 40"
rm -rf "${stage:?}"/*
with_sheaf bash ../simulate.sh 40 | tee "$work/said"
grep -q '^goes on from step 20$' "$work/said" || fail "the program did not find its checkpoint"
"$bin/sheaf" drain
rm -rf "${stage:?}"/*

say "All checkpoints, read back through Sheaf from the aggregates alone, against those of the run without Sheaf"
names=$(cd "$work/plain/ckpt" && ls)
[ "$(with_sheaf ls ckpt)" = "$names" ] || fail "other names than without Sheaf: $(with_sheaf ls ckpt)"
for name in $names; do
    with_sheaf cmp "ckpt/$name" "../plain/ckpt/$name" || fail "$name differs"
done
"$bin/sheaf" drain
"$bin/sheaf" verify "$work/sheaf/ckpt/.sheaf" || fail "the store is not clean"

say "Equal, byte for byte: $(wc -w <<<"$names") checkpoints, written, lost with their node, and restarted from one file a run."
