#!/usr/bin/env bash
# A file system with servers of its own, for tests: MooseFS (a metadata server, two chunk servers) or GlusterFS (two bricks). It
# needs root, and a network and mounts of its own (scripts/slurm-cluster.sh has both): what it changes there ends with them.
# Usage: scripts/network-file-system.sh DIRECTORY COMMAND KIND
#   serve KIND        starts the servers of `moosefs` or `glusterfs`; their state lies in DIRECTORY
#   mount KIND PLACE  mounts the file system
#   count KIND PLACE  how many calls the servers were asked for, those that carry data apart, as they count them themselves:
#                     `moosefs` the calls of the mount at PLACE to the metadata server, `glusterfs` of all mounts to all bricks
set -euo pipefail

state=$(realpath -m "$1")
command=$2
kind=$3
address=10.77.0.1

# Until a command succeeds; half a minute at most.
await() {
    for ((try = 0; try < 600; try++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "network-file-system: waited in vain for: $*; see $state" >&2
    return 1
}

moosefs_has_chunk_servers() { [ "$(mfscli -n -H $address -P 9421 -SCS -p | grep -c "^chunk servers")" = 2 ]; }

serve_moosefs() {
    mkdir -p "$state/master"
    cp /var/lib/mfs/metadata.mfs.empty "$state/master/metadata.mfs"
    printf '%s\n' '* / rw,alldirs,admin,maproot=0:0,mingoal=1' '* . rw' >"$state/exports"
    : >"$state/topology"
    local account="WORKING_USER = root\nWORKING_GROUP = root\n" number
    printf '%b' "${account}DATA_PATH = $state/master\nEXPORTS_FILENAME = $state/exports\n" \
        "TOPOLOGY_FILENAME = $state/topology\nMATOML_LISTEN_HOST = $address\nMATOCS_LISTEN_HOST = $address\n" \
        "MATOCL_LISTEN_HOST = $address\n" >"$state/master.cfg"
    mfsmaster -c "$state/master.cfg" start
    for number in 0 1; do
        mkdir -p "$state/chunks$number" "$state/server$number"
        echo "$state/chunks$number" >"$state/disks$number"
        printf '%b' "${account}SYSLOG_IDENT = server$number\nDATA_PATH = $state/server$number\n" \
            "HDD_CONF_FILENAME = $state/disks$number\nBIND_HOST = $address\nMASTER_HOST = $address\n" \
            "CSSERV_LISTEN_HOST = $address\nCSSERV_LISTEN_PORT = $((9430 + number))\n" >"$state/server$number.cfg"
        mfschunkserver -c "$state/server$number.cfg" start
    done
    await moosefs_has_chunk_servers
}

has_room() { [ "$(stat -f -c %a "$1")" != 0 ]; }

mount_moosefs() {
    mfsmount "$1" -H $address -P 9421
    await has_room "$1"
}

count_moosefs() { sed -n 's/^master\.packets_sent: //p' "$1/.stats"; }

# The daemon's places are the same for all of a machine: here they are the cluster's own.
own_gluster_places() {
    local place
    for place in lib/glusterd run/gluster log/glusterfs; do
        mkdir -p "$state/$(hostname)/$place" "/var/$place"
        mountpoint -q "/var/$place" || mount --bind "$state/$(hostname)/$place" "/var/$place"
    done
}

gluster_is_up() { ! gluster volume status shared detail | grep -q 'Online *: N'; }

serve_glusterfs() {
    own_gluster_places
    glusterd --pid-file="$state/glusterd.pid" --log-file="$state/glusterd.log"
    await gluster --mode=script pool list
    mkdir -p "$state/brick0" "$state/brick1"
    gluster --mode=script volume create shared "$address:$state/brick0" "$address:$state/brick1" force
    gluster --mode=script volume profile shared start
    # Clients keep what they have read; without these they see what others have written only after a while.
    local option
    for option in quick-read io-cache stat-prefetch open-behind read-ahead; do
        gluster --mode=script volume set shared "performance.$option" off
    done
    gluster --mode=script volume start shared
    await gluster_is_up
}

mount_glusterfs() {
    own_gluster_places
    mount -t glusterfs -o attribute-timeout=0,entry-timeout=0,negative-timeout=0 "$address:/shared" "$1"
}

count_glusterfs() {
    gluster volume profile shared info cumulative |
        awk '$NF ~ /^[A-Z]+$/ && $3 == "ns" && $NF != "READ" && $NF != "WRITE" { calls += $(NF - 1) } END { print calls }'
}

case $command in
    serve)
        mkdir -p "$state"
        "serve_$kind"
        touch "$state/served"
        ;;
    mount)
        await test -e "$state/served"
        "mount_$kind" "$4"
        ;;
    count) "count_$kind" "$4" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# //p}' "$(readlink -f "$0")" >&2; exit 2 ;;
esac
