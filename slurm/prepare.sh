#!/bin/bash
# Turns raw corpora into shards on one node, no GPU. It may be killed and requeued at any time; finished parts are not repeated.
#
#   sbatch slurm/prepare.sh all --config corpus.toml
#
# Takes the arguments of `unimo prepare`. For a detector on the GPUs of four nodes, with one
# rank per GPU (the first directs the others, and leaves its own GPU idle):
#
#   sbatch --nodes=4 --ntasks-per-node=8 --cpus-per-task=4 --gpus-per-node=8 slurm/prepare.sh regions data/train \
#     --extractor bottom-up --weights faster_rcnn.safetensors --executor mpi
#SBATCH --job-name=unimo-prepare
#SBATCH --nodes=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
SRUN_OPTIONS=()
source "${UNIMO_ENVIRONMENT:-slurm/environment.sh}" || exit 2
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
exec srun "${SRUN_OPTIONS[@]}" "$PYTHON" -m unimo_ds prepare "$@"
