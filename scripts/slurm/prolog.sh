#!/usr/bin/env bash
# Prolog for slurm.conf: publishes what an earlier job of the same user has left staged on this node, before the new job starts. That
# is what no epilog could do, because the node went down with the job and its stage outlived both, or nobody has set one up.
# Like the epilog, whose environment it takes, it never fails, and gives up in time: the job's own flusher goes on with the rest.
SHEAF_EPILOG_SECONDS=${SHEAF_EPILOG_SECONDS:-60} exec "$(dirname "$(readlink -f "$0")")/epilog.sh"
