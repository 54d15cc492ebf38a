#!/usr/bin/env bash
# Runs fuzz targets, one after the other: scripts/fuzz.sh SECONDS [TARGET...]. Needs g++ and a nightly compiler
# (FUZZ_TOOLCHAIN, default "nightly"), not cargo-fuzz; that reads fuzz/ as well. Exit status 0 only without a finding.
#
# What the fuzzer finds out stays in fuzz/corpus, what it finds wrong in fuzz/artifacts; neither is committed. A finding
# becomes a seed in fuzz/seeds when it is mended.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
targets=("$@")
[ ${#targets[@]} != 0 ] || targets=(aggregate messages patterns environment)

coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
export RUSTFLAGS="--cfg fuzzing $coverage -Zsanitizer=address -Cdebug-assertions -Coverflow-checks"
triple=x86_64-unknown-linux-gnu
cargo "+${FUZZ_TOOLCHAIN:-nightly}" build --quiet --release --target $triple

status=0
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    length=4096
    [ "$target" != aggregate ] || length=65536
    [ "$target" != patterns ] || length=256
    "target/$triple/release/$target" -max_total_time="$seconds" -max_len=$length -timeout=20 -rss_limit_mb=2048 \
        -malloc_limit_mb=512 -print_final_stats=1 -artifact_prefix="artifacts/$target/" \
        "corpus/$target" "seeds/$target" || status=1
done
exit $status
