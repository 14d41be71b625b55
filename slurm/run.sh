#!/bin/bash
# Run inside the jobs of base.sh and large.sh: check the nodes, train, and requeue the job if interrupted.
#
# Ten minutes before the time limit Slurm sends SIGUSR1 to every task (--signal without "B:" bypasses this script). The trainer
# saves and exits with status 75, and the job is requeued. If a node fails, Slurm notices, and --requeue does the same.
set -uo pipefail
recipe=$1
shift
cd "$SLURM_SUBMIT_DIR" || exit 2
SRUN_OPTIONS=()
PREFLIGHT_OPTIONS=()
# shellcheck source=environment.sh
source "${UNIMO_ENVIRONMENT:-slurm/environment.sh}" && source slurm/requeue.sh || exit 2
run_dir=${RUN_DIR:-runs/$recipe}
most_failures=5

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"; }
newest() { cat "$run_dir/checkpoints/latest" 2>/dev/null || echo nothing; }

requeue() { # [nodes to exclude, separated by commas]
    local known
    if ! requeue_job; then
        say "not requeued: the job was cancelled, is being requeued already, or Slurm refused"
        exit "$status"
    fi
    say "requeued"
    if [ -n "${1:-}" ]; then # the list can be changed while a job is pending, which it now is
        known=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ (]*\).*/\1/p')
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${known:+$known,}$1" && say "excluded from now on: $1"
    fi
    exit "$status"
}
failed() { # [nodes to blame]
    # Continue from the newest checkpoint, unless that led to no new one too often.
    local failures=1 known
    known=$(cat "$run_dir/failed_starts" 2>/dev/null)
    [[ $known =~ ^[0-9]{1,9}$ ]] || known=0 # arithmetic would run a command that the file holds
    [ "$before" = "$(newest)" ] && failures=$((10#$known + 1))
    mkdir -p "$run_dir" && echo "$failures" >"$run_dir/failed_starts"
    say "status $status, newest checkpoint $(newest), failures without a new one: $failures of $most_failures"
    [ "$failures" -lt "$most_failures" ] && requeue "${1:-}"
    say "given up; look for the first error above, then submit again" && exit "$status"
}

case " $* " in
*" --run-dir"*) say "give RUN_DIR=... to sbatch instead of --run-dir"; exit 2 ;;
*" --data"*) say "give DATA=... to sbatch instead of --data"; exit 2 ;; # it would add to DATA, unchecked by the preflight
esac
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun stopped inheriting --cpus-per-task in Slurm 22.05
before=$(newest)
say "$recipe on $SLURM_JOB_NODELIST, from $before"

# Unfit nodes are excluded from the next start on. If the preflight names none, the first node failed before it could judge.
reports=$run_dir/preflight/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
srun --kill-on-bad-exit=0 --wait=240 "${SRUN_OPTIONS[@]}" \
    "$PYTHON" -m unimo_ds doctor preflight --data "$DATA" --run-dir "$run_dir" --reports "$reports" "${PREFLIGHT_OPTIONS[@]}"
status=$?
if [ "$status" -eq 2 ]; then
    say "no node is fit, so it is not the nodes; not requeued" && exit 2
elif [ "$status" -ne 0 ]; then
    failed "$(cat "$reports/bad_nodes" 2>/dev/null || echo "$SLURMD_NODENAME")"
fi

# Each task exits with its own status; once one has, the others get a minute, so that nobody waits for a dead rank.
srun --kill-on-bad-exit=0 --wait=60 "${SRUN_OPTIONS[@]}" \
    "$PYTHON" -m unimo_ds.train --recipe "$recipe" --data "$DATA" --run-dir "$run_dir" "$@"
status=$?

case $status in
0) say "done" && exit 0 ;;
2 | 130) say "stopped with status $status; not requeued" && exit "$status" ;;
75) [ "$before" != "$(newest)" ] && rm -f "$run_dir/failed_starts" && requeue; failed ;; # failed: stopped while starting
*) failed ;; # a crash, a hang, a lost node
esac
