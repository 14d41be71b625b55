#!/bin/bash
# mini-slurm.sh - a REAL Slurm cluster (slurmctld + N slurmd + munge) on one machine, no systemd.
#
# Each "node" is its own set of Linux namespaces (net + uts + pid + ipc + mount): own IP address,
# own hostname, own /proc, own /dev/shm, own munged, own slurmd.  The nodes and a login/controller
# host ("login") hang on an Ethernet bridge that lives INSIDE the login namespace, so nothing is added
# to the machine's own network, /etc/hosts or /etc/slurm, and nothing can reach the outside.
#
#   mini-slurm.sh install               Slurm and munge from Debian's packages, where they are missing
#   mini-slurm.sh up N_NODES            bring the cluster up
#   mini-slurm.sh down [--purge]        stop everything, drop the state; --purge also removes what `install` installed
#   mini-slurm.sh status                processes, memory, sinfo, squeue
#   mini-slurm.sh exec CMD...           run CMD on the login host     e.g. exec sbatch slurm/large.sh
#   mini-slurm.sh on NODE CMD...        run CMD inside a node (like ssh)
#   mini-slurm.sh env                   prints a PATH line: eval "$(mini-slurm.sh env)"; then plain
#                                       sbatch/srun/squeue/scontrol/... work from the host shell
#   mini-slurm.sh wait JOBID [SECS]     wait (bounded) until the job is over; prints its final state
#  fault injection
#   mini-slurm.sh kill-node NODE        crash: SIGKILL the node's PID 1, every process there dies, peers see FIN/RST
#   mini-slurm.sh power-off NODE        the same with the cable pulled first: peers see silence
#   mini-slurm.sh boot-node NODE        bring a dead node back
#   mini-slurm.sh kill-slurmd NODE      SIGKILL only slurmd (job processes live on)
#   mini-slurm.sh start-slurmd NODE
#   mini-slurm.sh unplug NODE           network partition (veth down);   plug NODE  to heal
#   mini-slurm.sh kill-ctld / start-ctld   crash and recover the controller
#
# Settings (environment, read by `up`):
#   MINI_SLURM_DIR=/var/lib/mini-slurm   state directory (one cluster per directory; not on a noexec mount)
#   MINI_SLURM_GPUS=8  MINI_SLURM_GPU_TYPE=v100      fake GPUs per node (0: none; type may be empty)
#   MINI_SLURM_CPUS=64 MINI_SLURM_MEM=1030000        CPUs and MB that each node CLAIMS
#   MINI_SLURM_PARTITIONS="batch"    first one is the default; all of them hold all the nodes
#   MINI_SLURM_FEATURES=""           for --constraint
#   MINI_SLURM_PREFIX=node           node1..nodeN
#   MINI_SLURM_IFACES="eth0"         interface names in each node; further ones (e.g. "eth0 ib0") get a net each
#   MINI_SLURM_NET=10.201            first two octets: login 10.201.K.1, nodeI 10.201.K.(10+I)
#   MINI_SLURM_PRIVATE_TMP=1         every node has its own /tmp (0: one /tmp for all; breaks --mpi=pmix)
#   MINI_SLURM_SHARED=$PWD:$VIRTUAL_ENV   ... except these paths below /tmp (the "parallel file system");
#                                    everything outside /tmp and /dev/shm is shared anyhow
#   MINI_SLURM_SLURMD_TIMEOUT=15     seconds until a silent node is DOWN (production: 300)
#   MINI_SLURM_KILL_WAIT=5           seconds from SIGTERM to SIGKILL (production: 30)
#   MINI_SLURM_REQUEUE_DELAY=10      seconds a requeued job is held back, +1 (production: 120)
#   MINI_SLURM_TTL=14400             the cluster dies by itself after this many seconds (0: never)
#   MINI_SLURM_EXTRA_CONF=""         text appended to slurm.conf
set -u
SELF=$(readlink -f "$0")
DIR=${MINI_SLURM_DIR:-/var/lib/mini-slurm}
RECORD=/var/lib/mini-slurm.installed        # what `install` had apt-get install, for down --purge
die() { echo "mini-slurm: $*" >&2; exit 1; }
say() { echo "mini-slurm: $*" >&2; }
CLEANENV="env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root"

# ------------------------------------------------------------------ inside a node (PID 1 there)
# Reached through: unshare -n -u -i -p -m --fork --mount-proc ... mini-slurm.sh __init NAME
node_init() {
    local me=$1 nd=$DIR/nodes/$1 i p
    hostname "$me"
    [ -f "$DIR/settings" ] && . "$DIR/settings"
    mount --bind "$DIR/etc" /etc/slurm
    mount --bind "$DIR/hosts" /etc/hosts
    [ -f /etc/hostname ] && mount --bind "$nd/hostname" /etc/hostname
    mount --bind "$nd/munge" "$DIR/munge"           # one munge socket path, a private socket behind it
    mkdir -p "$nd/empty"; mount --bind "$nd/empty" "$DIR/bin"     # inside, PATH must find the real commands
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    if [ "$me" != login ] && [ "$S_PRIVATE_TMP" = 1 ]; then      # an own /tmp on disk, with the shared paths mounted into it
        mkdir -p "$nd/tmp"; chmod 1777 "$nd/tmp"
        local IFS=: all=$S_SHARED:$DIR
        for p in $all; do
            [ -n "$p" ] && p=$(readlink -f "$p") || continue
            case $p in /tmp) S_PRIVATE_TMP=0;; /tmp/*) [ -d "$p" ] && mkdir -p "$nd/tmp/${p#/tmp/}" && mount --rbind "$p" "$nd/tmp/${p#/tmp/}";; esac
        done
        unset IFS
        [ "$S_PRIVATE_TMP" = 1 ] && mount --rbind "$nd/tmp" /tmp
    fi
    ip link set lo up
    for i in $(seq 1800); do [ -e "$nd/net.ready" ] && break; sleep 0.05; done
    [ -e "$nd/net.ready" ] || exit 1
    munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge/munge.socket" \
           --pid-file="$DIR/munge/munged.pid" --log-file="$nd/munged.log" --seed-file="$nd/munged.seed" \
        </dev/null >>"$nd/init.log" 2>&1 || exit 1
    if [ "$me" = login ]; then
        slurmctld </dev/null >>"$nd/init.log" 2>&1 || exit 1
    else
        slurmd -N "$me" </dev/null >>"$nd/init.log" 2>&1 || exit 1
    fi
    : >"$nd/started"
    # PID 1: bash reaps the orphans; live until killed or until the time to live is over
    local end=$(( S_TTL > 0 ? SECONDS + S_TTL : 0 ))
    while [ $end = 0 ] || [ $SECONDS -lt $end ]; do sleep 5 & wait $!; done
}

# ------------------------------------------------------------------ helpers on the machine itself
alive_pid() {       # prints the pid (as the machine sees it) of NAME's PID 1, if it is really ours
    local p; p=$(cat "$DIR/nodes/$1/init.pid" 2>/dev/null) || return 1
    [ -r "/proc/$p/cmdline" ] && tr '\0' ' ' <"/proc/$p/cmdline" | grep -qF -- "__init $1 $DIR " && echo "$p"
}
into() {            # into NAME CMD... : run CMD in NAME's namespaces, same directory if it exists there
    local name=$1 p; shift
    p=$(alive_pid "$name") || die "$name is not running"
    nsenter -t "$p" -m -u -i -n -p -- sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$PWD" "$@"
}
ctld_alive() { into login bash -c '[ "$(cat /proc/$(cat "$0")/comm)" = slurmctld ] && echo yes' "$DIR/nodes/login/slurmctld.pid" 2>/dev/null; }

spawn_node() {      # start NAME's PID 1; its name is on the command line so that down can verify it
    local name=$1 nd=$DIR/nodes/$1 u p i
    rm -rf --one-file-system "$nd/tmp"
    mkdir -p "$nd/munge" "$nd/spool"; chmod 755 "$nd/munge"; rm -f "$nd/net.ready" "$nd/started" "$nd/init.pid" "$nd/munge"/*
    echo "$name" >"$nd/hostname"
    setsid $CLEANENV MINI_SLURM_DIR="$DIR" unshare -n -u -i -p -m --propagation private --mount-proc --fork --kill-child \
        bash "$SELF" __init "$name" "$DIR" </dev/null >>"$nd/init.log" 2>&1 &
    u=$!; disown
    for i in $(seq 100); do
        p=$(tr -d ' ' <"/proc/$u/task/$u/children" 2>/dev/null)
        [ -n "$p" ] && tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qF -- "__init $name $DIR" && break
        p=; sleep 0.02
    done
    [ -n "$p" ] || { cat "$nd/init.log" >&2; die "no namespaces for $name (needs root with CAP_SYS_ADMIN)"; }
    echo "$p" >"$nd/init.pid"
}
wire_node() {       # veth pairs login-bridge <-> node, addresses
    local name=$1 idx=$2 p h k=0 ifc
    p=$(alive_pid "$name") || die "$name died at start"; h=$(alive_pid login)
    for ifc in $S_IFACES; do
        nsenter -t "$h" -n ip link add "v$k-$idx" type veth peer name "$ifc" netns "$p" || die "veth for $name"
        nsenter -t "$h" -n ip link set "v$k-$idx" master "br$k" up
        nsenter -t "$p" -n ip addr add "$S_NET.$k.$((10 + idx))/24" dev "$ifc"
        nsenter -t "$p" -n ip link set "$ifc" up
        k=$((k + 1))
    done
    : >"$DIR/nodes/$name/net.ready"
}
node_index() { local i=${1#"$S_PREFIX"}; case $i in ''|*[!0-9]*) die "no such node: $1";; esac; [ "$i" -ge 1 ] && [ "$i" -le "$S_N" ] || die "no such node: $1"; echo "$i"; }
load() { [ -f "$DIR/settings" ] || die "no cluster in $DIR"; . "$DIR/settings"; }

install_packages() {
    local want="slurmctld slurmd slurm-client munge libpmix-dev iproute2 util-linux" miss="" p t0=$SECONDS LOG=/var/log/mini-slurm-apt.log
    for p in $want; do dpkg -s "$p" 2>/dev/null | grep -q '^Status: install ok installed' || miss="$miss $p"; done
    [ -z "$miss" ] && return 0
    say "apt-get install$miss"
    # keep the packages from starting daemons of their own
    local made=0
    if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1; fi
    export DEBIAN_FRONTEND=noninteractive
    timeout 600 apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends $miss >"$LOG" 2>&1 ||
        { timeout 300 apt-get -qq -o DPkg::Lock::Timeout=300 update >>"$LOG" 2>&1
          timeout 600 apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends $miss >>"$LOG" 2>&1; }
    local rc=$?
    [ $made = 1 ] && rm -f /usr/sbin/policy-rc.d
    sed -n 's/^Selecting previously unselected package \([^:]*\)\(:.*\)\{0,1\}\.$/\1/p' "$LOG" >>"$RECORD"
    [ $rc = 0 ] || { tail -20 "$LOG" >&2; die "apt-get failed"; }
    say "packages: $((SECONDS - t0)) s"
}

write_conf() {
    local e=$DIR/etc first part gres="" gt="" feat="" i
    mkdir -p "$e" "$DIR/dev" "$DIR/state" "$DIR/munge" "$DIR/nodes" "$DIR/bin"
    chmod 755 "$DIR" "$e"
    [ -f "$DIR/munge.key" ] || (umask 077; head -c 128 /dev/urandom >"$DIR/munge.key")
    { echo "127.0.0.1 localhost"; echo "$S_NET.0.1 login"
      for i in $(seq "$S_N"); do echo "$S_NET.0.$((10 + i)) $S_PREFIX$i"; done
      first=0; for part in $S_IFACES; do [ $first -gt 0 ] && for i in $(seq "$S_N"); do echo "$S_NET.$first.$((10 + i)) $S_PREFIX$i-$part"; done; first=$((first + 1)); done; } >"$DIR/hosts"
    : >"$e/gres.conf"
    if [ "$S_GPUS" -gt 0 ]; then
        for i in $(seq 0 $((S_GPUS - 1))); do   # character devices 1:3, i.e. harmless clones of /dev/null
            [ -e "$DIR/dev/nvidia$i" ] || mknod -m 666 "$DIR/dev/nvidia$i" c 1 3 2>/dev/null || ln -s "/dev/tty$i" "$DIR/dev/nvidia$i"
        done
        gt=gpu${S_GPU_TYPE:+:$S_GPU_TYPE}
        gres="Gres=$gt:$S_GPUS"
        { echo "AutoDetect=off"
          echo "Name=gpu ${S_GPU_TYPE:+Type=$S_GPU_TYPE} File=$DIR/dev/nvidia$([ "$S_GPUS" -gt 1 ] && echo "[0-$((S_GPUS - 1))]" || echo 0) Flags=nvidia_gpu_env"; } >"$e/gres.conf"
    fi
    [ -n "$S_FEATURES" ] && feat="Features=$S_FEATURES"
    [ "$S_N" -gt 1 ] && i="[1-$S_N]" || i=1
    local a; [ "$S_N" -gt 1 ] && a="[11-$((10 + S_N))]" || a=11
    local cps=$(( S_CPUS % 2 == 0 ? S_CPUS / 2 : S_CPUS )) soc=$(( S_CPUS % 2 == 0 ? 2 : 1 ))
    cat >"$e/slurm.conf" <<EOC
ClusterName=mini
SlurmctldHost=login($S_NET.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.socket,cred_expire=$S_REQUEUE_DELAY
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/nodes/%n/spool
SlurmctldPidFile=$DIR/nodes/login/slurmctld.pid
SlurmdPidFile=$DIR/nodes/%n/slurmd.pid
SlurmctldLogFile=$DIR/nodes/login/slurmctld.log
SlurmdLogFile=$DIR/nodes/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=5,bf_continue
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=$S_SLURMD_TIMEOUT
KillWait=$S_KILL_WAIT
InactiveLimit=0
MinJobAge=86400
JobRequeue=1
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/jobcomp.txt
${gres:+GresTypes=gpu}
DefMemPerCPU=1000
NodeName=$S_PREFIX$i NodeAddr=$S_NET.0.$a CPUs=$S_CPUS Sockets=$soc CoresPerSocket=$cps ThreadsPerCore=1 RealMemory=$S_MEM TmpDisk=4000000 $gres $feat State=UNKNOWN
EOC
    echo "AccountingStorageType=accounting_storage/none" >>"$e/slurm.conf"
    first=YES
    for part in $S_PARTITIONS; do
        echo "PartitionName=$part Nodes=ALL Default=$first MaxTime=INFINITE State=UP" >>"$e/slurm.conf"; first=NO
    done
    [ -n "$S_EXTRA_CONF" ] && printf '%s\n' "$S_EXTRA_CONF" >>"$e/slurm.conf"
    for i in sbatch srun salloc squeue sinfo scontrol scancel; do
        [ -x /usr/bin/$i ] || continue
        printf '#!/bin/sh\nexec env MINI_SLURM_DIR=%s %s exec /usr/bin/%s "$@"\n' "$DIR" "$SELF" "$i" >"$DIR/bin/$i"; chmod 755 "$DIR/bin/$i"
    done
}

cmd_up() {
    local n=${1:-} i t0 ns part k
    case $n in ''|*[!0-9]*) die "up N_NODES";; esac
    [ "$n" -ge 1 ] && [ "$n" -le 200 ] || die "1 to 200 nodes"
    [ "$(id -u)" = 0 ] || die "needs root"
    for i in "$DIR"/nodes/*; do [ -n "$(alive_pid "$(basename "$i")")" ] && die "already up in $DIR (down first)"; done
    mkdir -p "$DIR"; t0=$(date +%s.%N)
    {   for k in GPUS=8 GPU_TYPE=v100 CPUS=64 MEM=1030000 PARTITIONS=batch FEATURES= PREFIX=node IFACES=eth0 NET=10.201 PRIVATE_TMP=1 "SHARED=$PWD:${VIRTUAL_ENV:-}" \
                 SLURMD_TIMEOUT=15 KILL_WAIT=5 REQUEUE_DELAY=10 TTL=14400 EXTRA_CONF=; do
            i=MINI_SLURM_${k%%=*}; printf 'S_%s=%q\n' "${k%%=*}" "${!i-${k#*=}}"
        done; echo "S_N=$n"; } >"$DIR/settings"
    load
    for k in slurmctld slurmd munged nsenter ip; do command -v "$k" >/dev/null || die "no $k here; run: $SELF install"; done
    write_conf
    spawn_node login
    for i in $(seq "$n"); do spawn_node "$S_PREFIX$i"; done
    local h; h=$(alive_pid login) || die "login died: $(cat "$DIR/nodes/login/init.log")"
    k=0
    for i in $S_IFACES; do
        nsenter -t "$h" -n ip link add "br$k" type bridge || die "no bridge support in this kernel"
        nsenter -t "$h" -n ip addr add "$S_NET.$k.1/24" dev "br$k"
        nsenter -t "$h" -n ip link set "br$k" up; k=$((k + 1))
    done
    : >"$DIR/nodes/login/net.ready"
    for i in $(seq 1200); do   # controller first: a slurmd that finds none sleeps before it tries again
        [ -n "$(alive_pid login)" ] && [ -e "$DIR/nodes/login/started" ] && into login timeout 5 /usr/bin/scontrol ping 2>/dev/null | grep -q 'is UP' && break
        [ -e "$DIR/nodes/login/started" ] && [ -z "$(ctld_alive)" ] && break
        sleep 0.05
    done
    for i in $(seq "$n"); do wire_node "$S_PREFIX$i" "$i"; done
    local end=$((SECONDS + 60 + n)); ns=0
    while [ $SECONDS -lt $end ]; do
        [ -n "$(alive_pid login)" ] || break
        if [ -e "$DIR/nodes/login/started" ]; then
            [ -n "$(ctld_alive)" ] || break       # e.g. a fatal error in slurm.conf
            ns=$(into login timeout 5 /usr/bin/sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)
            [ "$ns" = "$n" ] && break
        fi
        sleep 0.1
    done
    if [ "$ns" != "$n" ]; then
        tail -n 5 "$DIR"/nodes/*/init.log "$DIR"/nodes/*/slurm*.log >&2
        die "only $ns of $n nodes came up (logs in $DIR/nodes; run 'down')"
    fi
    [ "$S_PRIVATE_TMP" = 1 ] && case "$S_SHARED" in */tmp/*|/tmp/*) say "each node has its own /tmp; shared below /tmp only: $S_SHARED";; esac
    awk -v a="$t0" -v b="$(date +%s.%N)" -v n="$n" 'BEGIN{printf "mini-slurm: %d nodes idle after %.1f s\n", n, b-a}' >&2
}

cmd_down() {
    local nd name p i
    [ -f "$DIR/settings" ] && . "$DIR/settings"
    if [ -d "$DIR/nodes" ]; then
        [ -n "$(alive_pid login)" ] && into login timeout 10 /usr/bin/scontrol shutdown >/dev/null 2>&1
        for nd in "$DIR"/nodes/*; do
            name=$(basename "$nd"); p=$(alive_pid "$name") || continue
            [ -n "$p" ] && kill -9 "$p"      # PID 1 of a pid namespace: the kernel kills the rest
        done
        for nd in "$DIR"/nodes/*; do
            for i in $(seq 100); do [ -z "$(alive_pid "$(basename "$nd")")" ] && break; sleep 0.05; done
        done
    fi
    [ -f "$DIR/settings" ] && rm -rf --one-file-system "$DIR"
    if [ "${1:-}" = --purge ] && [ -f "$RECORD" ]; then
        # dpkg, not apt: it never removes anything that is not on the list (a package that others need by now stays)
        DEBIAN_FRONTEND=noninteractive timeout 300 dpkg --purge $(sort -u "$RECORD") >/dev/null 2>&1
        p=$(for i in $(sort -u "$RECORD"); do dpkg -s "$i" 2>/dev/null | grep -q '^Status: .* installed$' && echo "$i"; done)
        [ -z "$p" ] || { say "kept, since other packages need them:" $p; printf '%s install\n' $p | dpkg --set-selections; }
        rm -f "$RECORD"
    fi
    say "down"
}

set_link() {        # NODE up|down: the switch's side of the node's cables
    local i v=0 ifc; i=$(node_index "$1") || exit 1
    for ifc in $S_IFACES; do into login ip link set "v$v-$i" "$2" || exit 1; v=$((v + 1)); done
}
node_kill() { local p; p=$(alive_pid "$1") || die "$1 is not running"; kill -9 "$p"; while [ -n "$(alive_pid "$1")" ]; do sleep 0.05; done; }

cmd_status() {
    load
    local name p tot=0 kb procs
    for name in login $(seq -f "$S_PREFIX%g" "$S_N"); do
        p=$(alive_pid "$name") || { echo "$name: not running"; continue; }
        # every process of this pid namespace, as the machine sees it; PSS counts shared pages once
        local ns; ns=$(readlink /proc/$p/ns/pid); kb=0; procs=0
        for q in /proc/[0-9]*; do
            [ "$(readlink $q/ns/pid 2>/dev/null)" = "$ns" ] || continue
            procs=$((procs + 1)); kb=$((kb + $(awk '/^Pss:/{print $2}' $q/smaps_rollup 2>/dev/null || echo 0) + 0))
        done
        echo "$name: pid1 $p, $procs processes, $((kb / 1024)) MB"; tot=$((tot + kb))
    done
    echo "total: $((tot / 1024)) MB (PSS)"
    into login /usr/bin/sinfo -N -l; into login /usr/bin/squeue
}

cmd_wait() {
    local job=${1:?job id} lim=${2:-300} s end=$((SECONDS + ${2:-300}))
    while [ $SECONDS -lt $end ]; do
        s=$(into login /usr/bin/scontrol -o show job "$job" 2>/dev/null | grep -o 'JobState=[A-Z_]*' | sort -u | tr '\n' ' ')
        case $s in *PENDING*|*RUNNING*|*COMPLETING*|*CONFIGURING*|*REQUEUE*|*SUSPENDED*) sleep 0.3;; '') die "no job $job";; *) echo "$s"; return 0;; esac
    done
    echo "still $s"; return 1
}

case ${1:-} in
__init)  shift; node_init "$1" ;;
install) install_packages ;;
up)      shift; cmd_up "$@" ;;
down)    shift; cmd_down "$@" ;;
status)  cmd_status ;;
exec)    shift; into login "$@" ;;
on)      shift; into "$@" ;;
env)     echo "export PATH=$DIR/bin:\$PATH" ;;
wait)    shift; cmd_wait "$@" ;;
kill-node)    load; node_kill "$2" ;;
power-off)    load; set_link "$2" down; node_kill "$2" ;;
boot-node)    load; i=$(node_index "$2") || exit 1; [ -z "$(alive_pid "$2")" ] || die "$2 is running"
              into login ip link show "v0-$i" >/dev/null 2>&1 && into login ip link del "v0-$i"; spawn_node "$2"; wire_node "$2" "$i" ;;
kill-slurmd)  load; into "$2" bash -c 'p=$(cat "$0"); [ "$(cat /proc/$p/comm)" = slurmd ] && kill -9 $p' "$DIR/nodes/$2/slurmd.pid" 2>/dev/null || die "no slurmd there" ;;
start-slurmd) load; into "$2" $CLEANENV slurmd -N "$2" ;;
unplug)       load; set_link "$2" down ;;
plug)         load; set_link "$2" up ;;
kill-ctld)    into login bash -c 'p=$(cat "$0"); [ "$(cat /proc/$p/comm)" = slurmctld ] && kill -9 $p' "$DIR/nodes/login/slurmctld.pid" 2>/dev/null || die "no slurmctld there" ;;
start-ctld)   into login $CLEANENV slurmctld ;;
*)       sed -n '2,/^set -u/p' "$SELF" | sed 's/^# \{0,1\}//;$d'; exit 1 ;;
esac
