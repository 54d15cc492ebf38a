#!/usr/bin/env bash
#SBATCH --nodes=2 --ntasks-per-node=2 --time=04:00:00
# An example to copy: a program whose checkpoints are captured, and which goes on from them wherever its next job runs.
# The launcher outlives the program on each node and waits until all is published: Slurm kills what a step leaves behind.
# Usage: sbatch scripts/slurm/job.sh PROGRAM [ARGUMENT ...], from the directory in which the program makes its `ckpt`
set -euo pipefail
checkpoints=$PWD/ckpt
sheaf=${SHEAF:-sheaf}
mkdir -p "$checkpoints"
# What an earlier job was killed with is published before this one reads it; nodes on which nothing is left say so.
srun --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" env SHEAF_PATHS="$checkpoints/**" "$sheaf" drain
srun --mpi=pmix "$sheaf" run --paths "$checkpoints/**" -- "$@"
