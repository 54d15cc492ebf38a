#!/usr/bin/env bash
# Counts what each layout asks of a local directory, MooseFS and GlusterFS on four nodes, beside a file for each process, and writes the
# table into tests/LAYOUTS.md. Takes five minutes and needs root. Exit status 0 only when all was measured.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
table=$(mktemp)
trap 'rm -f "$table"' EXIT
cargo test -p sheaf-tests --test cluster what_the_layouts_ask -- --ignored --nocapture | tee /dev/stderr | grep '^|' >"$table"
{
    cat <<'END'
# What each layout asks of a file system with servers of its own

Made by `scripts/layouts.sh`: four Slurm nodes on one machine write five checkpoints of 16 files of 64 KiB each, and wait for each until it
is durable: by fsync of each file without Sheaf, by `sheaf wait` with it. Operations are those that the servers count, but for reads and
writes of data: on MooseFS the questions to the metadata server, on GlusterFS the calls to all bricks, with the start and the end of each
flusher in them. Medians of three rounds, in which the layouts take turns; times include starting an interpreter, and are of
one machine that plays all parts: only those of one file system can be compared. Nothing counts operations on a local directory.

END
    cat "$table"
} >tests/LAYOUTS.md
