#!/usr/bin/env bash
# Makes stores of up to 10,000 simulated nodes in memory and writes what reading them takes into tests/SCALE.md. Takes some
# minutes and 3 GiB of /dev/shm.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v strace >/dev/null || { echo "scale-model.sh: strace is missing" >&2; exit 2; }
cargo build --release -p sheaf-flusher -p sheaf-bench
directory=$(mktemp -d /dev/shm/sheaf-scale.XXXXXX)
trap 'rm -rf "$directory"' EXIT
table=$(target/release/sheaf-bench scale --directory "$directory")
{
    cat <<'END'
# What stores of many nodes take

Made by `scripts/scale-model.sh`: each simulated node has one sealed aggregate with 100 files, written by the code that flushers
write with. "Calls on the store" are those that open, look at, list or sync something in the store; reading what is open is
counted in MiB. Both are exact; seconds and memory are of one run each, on a machine that others used.

A job that restarts from a file per process opens each file once by whoever reads it, and made each by a create: as many
operations as there are files, at least, every time. One file for all ranks, with offsets from a prefix sum behind a barrier,
takes one open per rank. Here a node takes the calls below once, whatever the number of its processes, and one open for each
aggregate that it reads data from.

END
    echo "$table"
} >tests/SCALE.md
