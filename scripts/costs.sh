#!/usr/bin/env bash
# Counts what the library costs a program, in instructions and system calls, and writes the table into tests/COSTS.md.
# Exit status 0 only when nothing is beyond its bar; the table is written in either case. Usage: scripts/costs.sh
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
rm -f target/costs.md
status=0
cargo test -p sheaf-tests --test costs || status=$?
{
    echo "# What the library costs a program"
    echo
    echo "Made by \`scripts/costs.sh\`: callgrind's instructions in user space and strace's system calls of one call, so"
    echo "that neither the machine nor its load has a part in them. They differ between C libraries and compilers."
    echo "\"At most\" is where the test fails: the bar of 60 in system directories, elsewhere about a tenth above what was"
    echo "reached. Aimed at, and missed: 60 instructions more elsewhere. There the directory is looked up in what is"
    echo "remembered for some milliseconds, and a readlink tells whether the name leads to a checkpoint: another process can"
    echo "make either a link into a checkpoint directory, and then an old file would be read in the place of a captured one."
    cat target/costs.md
} > tests/COSTS.md
exit "$status"
