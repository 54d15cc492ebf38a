#!/usr/bin/env bash
# Measures capture, flush and restart beside native writes and fio on one machine, and prints a table (several minutes).
# Usage: scripts/measure.sh [DIRECTORY on the file system to measure] [FILES] [MIB_PER_FILE] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
command -v fio >/dev/null || { echo "measure.sh: fio is missing: apt-get install fio" >&2; exit 2; }
cargo build --release --workspace
exec target/release/measure "$@"
