#!/bin/bash
# Evaluates a checkpoint on held-out data, on one GPU.
#
#   sbatch slurm/evaluate.sh zero-shot --checkpoint runs/base_32xv100 --json zero_shot.json
#
# Takes the arguments of `unimo evaluate`; --data defaults to the held_out folder of environment.sh's DATA.
#SBATCH --job-name=unimo-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=5
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
SRUN_OPTIONS=()
source "${UNIMO_ENVIRONMENT:-slurm/environment.sh}" || exit 2
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
case " $* " in *" --data"*) data=() ;; *) data=(--data "${DATA//:://held_out::}/held_out") ;; esac
exec srun "${SRUN_OPTIONS[@]}" "$PYTHON" -m unimo_ds evaluate "${1:?give a task, e.g. zero-shot}" "${data[@]}" "${@:2}"
