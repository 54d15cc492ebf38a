#!/usr/bin/env bash
# A Slurm cluster on one machine, for tests: each node is a set of namespaces with its own host name, address, processes,
# cgroup, /dev/shm and local disk. It needs root. It must leave nothing behind: no process, mount, cgroup or address of the host.
# Usage: scripts/slurm-cluster.sh DIRECTORY COMMAND
#   up NODES         starts a controller and nodes n0, n1, ...; DIRECTORY holds the cluster's state, and must be new
#   run COMMAND ...  runs a command beside the controller (srun, sbatch, squeue)
#   on NODE COMMAND  runs a command on a node, outside of any job
#   crash NODE       the node is gone at once: its processes, its memory, its disk
#   boot NODE        starts a node that has crashed
#   down             ends everything
# Environment of `up`: SHARED, the directory that all nodes see as /mnt/shared (the parallel file system); INSTALLED, one that
# they see as /mnt/installed; NETWORK, a kind of file system (scripts/network-file-system.sh) that the controller serves and all nodes
# have as /mnt/network; SLURM_EXTRA, lines to be added to slurm.conf (Epilog=...); OWNER, a process without which the cluster ends.
set -euo pipefail

state=$(realpath -m "$1")
command=$2
shift 2
self=$(readlink -f "$0")
export SLURM_CONF=$state/slurm.conf
controller_address=10.77.0.1
network=$(dirname "$self")/network-file-system.sh

# Until a command succeeds; half a minute at most.
await() {
    for ((try = 0; try < 600; try++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "slurm-cluster: waited in vain for: $*; see $state/log" >&2
    return 1
}

enter() {
    local init
    init=$(cat "$state/init/$1")
    shift
    exec nsenter --target "$init" --net --uts --mount --pid --ipc --cgroup -- "$@"
}

configure() {
    cat >"$state/slurm.conf" <<END
ClusterName=sheaf
SlurmctldHost=controller($controller_address)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$state/munge/socket,cred_expire=10
SlurmUser=root
SlurmdUser=root
MailProg=/bin/true
StateSaveLocation=$state/saved
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd-%n.pid
SlurmctldLogFile=$state/log/slurmctld
SlurmdLogFile=$state/log/slurmd-%n
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
KillWait=2
MpiDefault=pmix
NodeName=n[0-$(($1 - 1))] CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
${SLURM_EXTRA:-}
END
    cat >"$state/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupMountpoint=/mnt/cgroup
CgroupAutomount=no
END
    # The plugin's own directory has the same name on each node, and /tmp is the host's.
    echo "PMIxCliTmpDirBase=/mnt/local" >"$state/mpi.conf"
    {
        echo "127.0.0.1 localhost"
        echo "$controller_address controller"
        for ((node = 0; node < $1; node++)); do echo "10.77.0.$((10 + node)) n$node"; done
    } >"$state/hosts"
}

# Runs as the first process of a node's namespaces.
init() {
    local name=$1 kind
    kind=$(cat "$state/network-kind")
    hostname "$name"
    mount --make-rprivate /
    mount --bind "$state/hosts" /etc/hosts
    mount -t tmpfs -o size=512m,mode=1777 "shm-$name" /dev/shm
    # What is mounted over the nodes' own /mnt never shows on the host.
    local shared installed
    exec 3<"$(cat "$state/shared")" 4<"$(cat "$state/installed")"
    shared=/proc/self/fd/3 installed=/proc/self/fd/4
    mount -t tmpfs -o mode=755 "mnt-$name" /mnt
    mkdir /mnt/local /mnt/shared /mnt/installed /mnt/network /mnt/cgroup /mnt/cgroup/freezer
    mount -t tmpfs -o size=512m,mode=1777 "local-$name" /mnt/local
    mount --bind "$shared" /mnt/shared
    mount --bind "$installed" /mnt/installed
    exec 3<&- 4<&-
    mount -t cgroup -o freezer freezer /mnt/cgroup/freezer
    ip link set lo up
    if [ "$name" = controller ]; then
        ip link add bridge0 type bridge
        ip address add $controller_address/24 dev bridge0
        ip link set bridge0 up
        [ -z "$kind" ] || "$network" "$state/network" serve "$kind"
        exec slurmctld -D >"$state/log/$name.out" 2>&1
    fi
    await ip link show eth0
    ip address add "10.77.0.$((10 + ${name#n}))/24" dev eth0
    ip link set eth0 up
    [ -z "$kind" ] || "$network" "$state/network" mount "$kind" /mnt/network
    mkdir -p "$state/spool/$name"
    # This shell stays, and reaps what daemons and jobs leave.
    slurmd -D -N "$name" >"$state/log/$name.out" 2>&1
    sleep infinity
}

start() {
    local name=$1 freezer
    freezer=$(cat "$state/freezer")/$name
    mkdir -p "$freezer"
    # The inner shell takes its first process into the node's cgroup before the namespace makes that the root of all.
    setsid bash -c 'echo $$ >"$1/tasks"; exec unshare --net --uts --mount --pid --ipc --cgroup --fork --mount-proc \
        --kill-child=KILL bash "$2" "$3" init "$4"' - "$freezer" "$self" "$state" "$name" \
        </dev/null >"$state/log/$name.init" 2>&1 &
    local outer=$!
    await pgrep --parent "$outer"
    pgrep --parent "$outer" >"$state/init/$name"
}

boot() {
    start "$1"
    local controller node
    controller=$(cat "$state/init/controller")
    node=$(cat "$state/init/$1")
    nsenter --target "$controller" --net ip link add "to-$1" type veth peer name eth0 netns "$node"
    nsenter --target "$controller" --net ip link set "to-$1" master bridge0 up
}

# Whoever waits for an answer of the network file system gets none: else a client by FUSE that dies before him keeps him for ever.
abort_requests() {
    local connection
    connection=$(sed -nE 's|^[0-9]+ [0-9]+ 0:([0-9]+) [^ ]+ /mnt/network .*|\1|p' "/proc/$1/mountinfo" 2>/dev/null) || true
    [ -n "$connection" ] || return 0
    mkdir -p "$state/connections"
    mount -t fusectl fusectl "$state/connections"
    echo 1 >"$state/connections/$connection/abort" || true
    umount "$state/connections"
}

# Ends a node's processes; the kernel ends a frozen one only when it is thawed.
crash() {
    local init freezer
    init=$(cat "$state/init/$1")
    freezer=$(cat "$state/freezer")/$1
    abort_requests "$init"
    kill -KILL "$init" 2>/dev/null || true
    find "$freezer" -name freezer.state -exec sh -c 'echo THAWED >"$1"' - {} \; 2>/dev/null || true
    await gone "$init"
    rm -f "$state/init/$1"
    await empty "$freezer"
}

gone() { ! kill -0 "$1" 2>/dev/null; }

empty() {
    [ -d "$1" ] || return 0
    find "$1" -depth -type d -exec rmdir {} \; 2>/dev/null
    [ ! -d "$1" ]
}

idle_nodes() { [ "$(nsenter_controller sinfo -h -t idle -o %D)" = "$1" ]; }

nsenter_controller() { (enter controller "$@"); }

up() {
    local nodes=$1
    mkdir -p "$state"
    chmod 755 "$state"
    mkdir "$state"/{munge,saved,spool,log,init}
    realpath "${SHARED:?}" >"$state/shared"
    realpath "${INSTALLED:?}" >"$state/installed"
    echo "${NETWORK:-}" >"$state/network-kind"
    configure "$nodes"
    # A hierarchy of cgroups of the tests' own, wherever the host has it.
    local freezer=/sys/fs/cgroup/freezer
    if ! mountpoint -q "$freezer"; then
        freezer=$state/cgroup
        mkdir "$freezer"
        mount -t cgroup -o freezer freezer "$freezer"
    fi
    mkdir "$freezer/sheaf-$(basename "$state")"
    echo "$freezer/sheaf-$(basename "$state")" >"$state/freezer"
    (umask 077 && head -c 1024 /dev/urandom >"$state/munge/key")
    chmod 711 "$state/munge"
    munged --force --key-file="$state/munge/key" --socket="$state/munge/socket" --pid-file="$state/munge/pid" \
        --log-file="$state/munge/log" --seed-file="$state/munge/seed" 2>"$state/log/munged"
    if [ -n "${OWNER:-}" ]; then
        setsid bash -c 'tail --pid="$1" -f /dev/null; exec "$2" "$3" down' - "$OWNER" "$self" "$state" \
            </dev/null >/dev/null 2>&1 &
        echo $! >"$state/guard"
    fi
    start controller
    await nsenter_controller ip link show bridge0
    for ((node = 0; node < nodes; node++)); do boot "n$node"; done
    await idle_nodes "$nodes"
}

down() {
    for init in "$state"/init/n* "$state/init/controller"; do
        [ ! -e "$init" ] || crash "$(basename "$init")"
    done
    [ ! -e "$state/freezer" ] || rmdir "$(cat "$state/freezer")" 2>/dev/null || true
    [ ! -e "$state/munge/pid" ] || kill "$(cat "$state/munge/pid")" 2>/dev/null || true
    ! mountpoint -q "$state/cgroup" || umount "$state/cgroup"
    [ ! -e "$state/guard" ] || kill -- "-$(cat "$state/guard")" 2>/dev/null || true
}

case $command in
    up | init | boot | crash | down) "$command" "$@" ;;
    run) enter controller "$@" ;;
    on) enter "$@" ;;
    *) sed -n '2,/^set/{/^set/d;s/^# //p}' "$self" >&2; exit 2 ;;
esac
