#!/usr/bin/env bash
# The whole campaign of kills: thousands of seeded rounds in which programs, flushers, launchers and whole nodes die. Prints
# what was killed where. Exit status 0 only when nothing was lost, torn or wrong in any round.
# Usage: scripts/crash-campaign.sh [ROUNDS [FIRST_SEED]]; a round that failed is repeated by its seed, as one round.
set -euo pipefail
cd "$(dirname "$0")/.."
export SHEAF_TEST_CAMPAIGN_ROUNDS=${1:-2000}
[ -z "${2:-}" ] || export SHEAF_TEST_CAMPAIGN_SEED=$2
cargo build --release
exec cargo test -p sheaf-tests --test crash campaign -- --nocapture
