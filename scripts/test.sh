#!/usr/bin/env bash
# Builds Sheaf and runs every test; the last line is "N passed, N failed". Exit status 0 only when none failed.
# Unit tests run as built for development; the tests in tests/ drive the release library and program.
set -euo pipefail
cd "$(dirname "$0")/.."

# The compiler works while packages come over the network, unless it is one of them.
building=
if command -v cc >/dev/null; then
    cargo build --release &
    building=$!
fi
scripts/install-test-dependencies.sh
[ -z "$building" ] || wait "$building"
cargo build --release
# Most tests wait for timeouts, disks and other processes: two at a time would leave small machines idle.
cores=$(nproc)
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((cores < 8 ? 8 : cores))}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# The benchmark has no tests.
cargo test --workspace --exclude sheaf-bench --no-fail-fast 2>&1 | tee "$log" || status=1

# Sums one column of cargo's lines "test result: ok. 12 passed; 0 failed; ...".
sum() { sed -nE "s/^test result: .* ([0-9]+) $1;.*/\1/p" "$log" | awk '{ sum += $1 } END { print sum + 0 }'; }
passed=$(sum passed)
failed=$(sum failed)
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
    echo "A test program did not build, or died before it could report: counted as one failure."
    failed=1
fi

echo "Running scripts/quickstart.sh"
if scripts/quickstart.sh; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
fi

# What failed, once more: it stands far above by now.
awk '/^---- .* ----$/ { left = 40; print "" } /^failures:$/ { left = 0 } left-- > 0' "$log"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
