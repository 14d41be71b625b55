#!/bin/bash
# A downstream task on the GPUs of one node: one process each, all seeds in turn.
#
#   sbatch slurm/finetune.sh sst2 --data glue/SST-2 --checkpoint runs/base_32xv100 --seeds 3
#
# The arguments are those of `unimo finetune`. A job that is stopped by its time limit saves and goes back to the queue.
#SBATCH --job-name=unimo-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=5
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
SRUN_OPTIONS=()
source "${UNIMO_ENVIRONMENT:-slurm/environment.sh}" || exit 2
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# The first task to leave gives the others a minute, so that nobody waits for a dead rank.
srun --kill-on-bad-exit=0 --wait=60 "${SRUN_OPTIONS[@]}" "$PYTHON" -m unimo_ds finetune "${@:?give a task, e.g. sst2}"
status=$?
[ "$status" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID" # saved before the time limit
exit "$status"
