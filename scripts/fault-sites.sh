#!/usr/bin/env bash
# Lets every call of a flusher on the store fail once with each error, and writes how each ended into tests/SITES.md. Takes an
# hour. Exit status 0 only when nothing was lost, hung or wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
table=$(mktemp)
trap 'rm -f "$table"' EXIT
SHEAF_TEST_ALL_ERRORS=1 cargo test -p sheaf-tests --test faults every_call_on_the_store -- --nocapture | tee /dev/stderr |
    grep '^|' >"$table"
{
    cat <<'END'
# What becomes of a failed call on the store

Made by `scripts/fault-sites.sh`: a flusher that drains a stage makes each of these calls on the parallel file system (as it
sees them, through FUSE), and one of them fails once. Afterwards everything is there, byte for byte, from the tree and from
the aggregates alone. "published": nothing was noticed, or the call was not needed. "second try": the flusher said what
failed and published at the next attempt. "next flusher": `sheaf drain` ended with an error, and whoever came next
published. In the last column the call was made, and its answer was lost (EIO).

END
    cat "$table"
} >tests/SITES.md
