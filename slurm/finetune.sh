#!/bin/bash
# Fine-tunes a checkpoint on a downstream task, on one node of 8 GPUs.
#
#   sbatch slurm/finetune.sh vqa --checkpoint runs/base_32xv100 --data data/vqa --run-dir runs/vqa
#
# Takes the arguments of `unimo finetune`, which resumes the run in its run directory. The job is requeued before its time limit.
#SBATCH --job-name=unimo-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=5
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
SRUN_OPTIONS=()
source "${UNIMO_ENVIRONMENT:-slurm/environment.sh}" && source slurm/requeue.sh || exit 2
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
srun --kill-on-bad-exit=0 --wait=60 "${SRUN_OPTIONS[@]}" "$PYTHON" -m unimo_ds finetune "${@:?give a task}"
status=$?
[ "$status" -eq 75 ] && requeue_job
exit "$status"
