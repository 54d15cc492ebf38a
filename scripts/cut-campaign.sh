#!/usr/bin/env bash
# The whole campaign of lost nodes: seeded rounds in which a job over four nodes loses one at any moment, and the next job begins
# on another node and on one that was left. What is said to be whole must be whole, in every round. Then the same rounds with
# everything shown, to see that they can fail. Exit status 0 only when no round of the first, and some of the second, failed.
# Usage: scripts/cut-campaign.sh [ROUNDS [FIRST_SEED]]; a round that failed is repeated by its seed, as one round.
set -euo pipefail
cd "$(dirname "$0")/.."
export SHEAF_TEST_CUT_ROUNDS=${1:-200} SHEAF_TEST_FIRST_SEED=${2:-1}
cargo build --release
for cut in newest complete; do
    SHEAF_TEST_CUT=$cut cargo test -p sheaf-tests --test cuts rounds -- --nocapture
done
