#!/usr/bin/env bash
# A real SLURM of two nodes on this Debian machine, for tests; as root, without systemd.
#
#     tests/launch/slurm.sh start DIR [GPUS]   # GPUS to a node, 2 unless given
#     export SLURM_CONF=DIR/slurm.conf         # for sbatch, srun and the rest
#     tests/launch/slurm.sh stop DIR
#
# All its files are in DIR. Both commands may be repeated.
set -euo pipefail

usage="usage: $0 start DIR [GPUS] | stop DIR"
action=${1:?$usage} dir=${2:?$usage} gpus=${3:-2}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
export SLURM_CONF=$dir/slurm.conf
PATH=$PATH:/usr/sbin

fail() {
    echo "slurm.sh: $1" >&2
    exit 1
}

check_machine() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null ||
            fail "$program is missing: apt-get install slurm-wlm munge"
    done
    ((EUID == 0)) || fail "must be root"
    [[ $dir != *[[:space:]]* ]] || fail "SLURM takes no blanks in the name of a folder"
}

# wait_until SECONDS COMMAND...: until it succeeds, at most so long.
wait_until() {
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

all_idle() { [[ $(sinfo --noheader --format=%T 2>&1) == idle ]]; }
no_jobs() { [[ -z $(squeue --noheader 2>&1) ]]; }

# The daemons that run. A zombie has ended; where nobody reaps it, it stays.
daemons() {
    cat "$dir"/*.pid 2>/dev/null | while read -r pid; do
        ps -o pid=,stat=,comm= -p "$pid" | awk '$2 !~ /^Z/ && /munged|slurm/ {print $1}'
    done
}
none_runs() { [[ -z $(daemons) ]]; }

write_config() {
    # Apart from those of another SLURM that starts at the same time: the ports of the
    # daemons, and the job ids, from which hfdist takes its own port.
    local port=$((20000 + 3 * ($$ % 4000))) first_job=$((64 * ($$ % 1000) + 1)) gres=
    if ((gpus)); then
        # Any device will do to count them and hand them out.
        for ((i = 0; i < gpus; i++)); do ln -sf /dev/null "$dir/gpu$i"; done
        echo "Name=gpu File=$dir/gpu[0-$((gpus - 1))]" >"$dir/gres.conf"
        gres=Gres=gpu:$gpus
    fi
    # A node is named by its address, so that the name leads there; 127.0.0.[1-2] reads
    # like the node[1-2] of a cluster. A requeued job waits until its old credential has
    # expired. The cores are more than there may be, which config_overrides allows.
    cat >"$dir/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
FirstJobId=$first_job
KillWait=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdSpoolDir=$dir/spool-%n
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmdLogFile=$dir/slurmd-%n.log
${gres:+GresTypes=gpu}
NodeName=127.0.0.[1-2] NodeHostname=$(hostname) Port=[$((port + 1))-$((port + 2))] CPUs=4 $gres
PartitionName=all Nodes=ALL Default=YES
END
}

start() {
    check_machine
    if [[ $(daemons | wc -l) == 4 ]]; then return; fi
    stop
    rm -rf "$dir"/{state,spool-*,*.log,*.pid,gres.conf}
    write_config
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    if ! run_daemons; then
        tail -n 20 "$dir"/*.log >&2
        stop
        fail "the nodes did not become idle in 30 s"
    fi
}

run_daemons() {
    # DIR may be closed to other users, which munged refuses without --force.
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" \
        --seed-file="$dir/munge.seed" 2>/dev/null &&
        slurmctld && slurmd -N 127.0.0.1 && slurmd -N 127.0.0.2 &&
        wait_until 30 all_idle
}

stop() {
    if none_runs; then return; fi
    # The processes of a job would outlive the daemons.
    scancel --user=root 2>/dev/null || true
    wait_until 20 no_jobs || true
    daemons | xargs -r kill
    wait_until 10 none_runs || daemons | xargs -r kill -KILL
}

case $action in
start | stop) "$action" ;;
*) fail "$usage" ;;
esac
