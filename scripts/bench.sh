#!/usr/bin/env bash
# Measures Sheaf beside writing to the target, to the stage, fio, cp, tar and rsync: all in one run, in interleaved
# rounds. Writes results.json and index.html below target/bench/results; see `sheaf-bench run --help` for options.
# Usage: scripts/bench.sh [--quick] [--targets local,xfs,capped,moosefs] [--rounds N]
# As root all targets are measured (loop devices, a capped one, MooseFS); other users get the local one.
set -euo pipefail
cd "$(dirname "$0")/.."

needs=()
command -v fio >/dev/null || needs+=(fio)
command -v rsync >/dev/null || needs+=(rsync)
if [ "$(id -u)" = 0 ]; then
    command -v mkfs.xfs >/dev/null || needs+=(xfsprogs)
    command -v ip >/dev/null || needs+=(iproute2)
    command -v mfsmaster >/dev/null || needs+=(moosefs-master moosefs-chunkserver moosefs-client)
    if [ ${#needs[@]} -gt 0 ]; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${needs[@]}"
    fi
elif [ ${#needs[@]} -gt 0 ]; then
    echo "bench.sh: missing; run as root: apt-get install ${needs[*]}" >&2
    exit 2
fi
cargo build --release -p sheaf-shim -p sheaf-flusher -p sheaf-bench
output=${CARGO_TARGET_DIR:-target}
exec "$output/release/sheaf-bench" run --directory "$output/bench" --output "$output/bench/results" "$@"
