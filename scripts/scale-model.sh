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

The second table is of nodes that write: each begins an aggregate, publishes two checkpoints of ten names, and its end, while all others do.
A file per process takes at least a create and a close for each of the names, by as many files; one file for all ranks an open for each
rank, a barrier and a prefix sum before each checkpoint, and it is whole only when the slowest has written. Here nobody waits for
anybody. What grows is what a node of `shared:M` reads to find the end of its file: all that others have reserved since it looked last. So M is
to be large enough for about a hundred nodes to a file.

END
    echo "$table"
} >tests/SCALE.md
