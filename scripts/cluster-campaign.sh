#!/usr/bin/env bash
# MPI jobs under Slurm that lose a node, in seeded rounds: what `latest` names is whole for the next job, in every one. Ends with how many
# showed a whole step, and how many would have been wrong with everything shown. Needs root, and what
# scripts/install-test-dependencies.sh installs.
# Usage: scripts/cluster-campaign.sh [ROUNDS [FIRST_SEED]]; a round that failed is repeated by its seed, as one round.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
SHEAF_TEST_CLUSTER_ROUNDS=${1:-200} SHEAF_TEST_FIRST_SEED=${2:-1} \
    cargo test -p sheaf-tests --test cluster rounds_of_mpi_jobs -- --nocapture
