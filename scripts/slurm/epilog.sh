#!/usr/bin/env bash
# Epilog for slurm.conf: publishes what a job that was killed has left staged on this node, as the job's user, in bounded time.
# It never fails, because Slurm drains a node whose epilog does: what cannot be published in time stays staged, and the
# user's next job on the node, or `sheaf drain`, goes on with it. While another job of the user captures into the same store
# on this node it waits for its time only.
# Environment: SHEAF, the program; SHEAF_STAGE, the site's tiers, colon-separated; SHEAF_EPILOG_SECONDS for each stage.
# With job_container/tmpfs and a tier in /dev/shm, the stage is gone before this runs: name a tier that outlives jobs.
sheaf=${SHEAF:-sheaf}
tiers=${SHEAF_STAGE:-/dev/shm}
seconds=${SHEAF_EPILOG_SECONDS:-120}
user=${SLURM_JOB_UID:?run by slurmd}
group=$(id -g "$user" 2>/dev/null) || group=$user

# Groups as the user has them, if the node knows the user.
groups=--init-groups
id "$user" >/dev/null 2>&1 || groups=--clear-groups

# Root must not follow what a user put into the tier, nor write to the user's store.
as_user() {
    setpriv --reuid="$user" --regid="$group" $groups "$@"
}

IFS=:
for tier in $tiers; do
    for identity in "$tier/sheaf-$user"/*/identity; do
        [ -e "$identity" ] || continue
        at=$tier
        case $identity in
        *.spool/identity)
            # What a stage in another tier, perhaps of a node that has booted since, has not brought to the store.
            set -- "${identity%/*}"/*.tar
            [ -e "$1" ] || continue
            at=$tiers
            ;;
        esac
        store=$(as_user timeout 5 cat "$identity") || continue
        as_user timeout --kill-after=5 "$seconds" env SHEAF_STAGE="$at" SHEAF_STORE="$store" "$sheaf" drain ||
            logger --tag sheaf-epilog "job $SLURM_JOB_ID: what is staged in ${identity%/*} stays for now" || true
    done
done
exit 0
