#!/usr/bin/env bash
# The tests that take too long for every run: 1 GiB through a stage of 64 MiB, in each way that programs write, and a flusher that is
# killed at each call that concerns a further tier, and all layouts on MooseFS. Takes an hour; needs
# what scripts/install-test-dependencies.sh installs, and root for the small stage. Exit status 0 only when all pass.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
cargo test -p sheaf-tests --no-fail-fast -- --ignored "$@"
