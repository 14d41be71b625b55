#!/bin/bash
# The paper's base model: 4 nodes of 8 V100 of 32 GB.
#
#   sbatch slurm/base.sh                                          a run in runs/base_32xv100, requeued until it is done
#   sbatch slurm/base.sh --set schedule.total_steps=1000          arguments go to unimo_ds/train.py
#   RUN_DIR=runs/second sbatch slurm/base.sh --set seed=1         another run
#   RECIPE=base_pixels_32xv100 sbatch slurm/base.sh               from pixels instead of a detector's regions
#
# Everything about the run is in unimo_ds/recipes/base_32xv100.py, everything about the cluster in environment.sh.
#SBATCH --job-name=unimo-base
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=5
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
exec bash "${SLURM_SUBMIT_DIR:?submit this script with sbatch}/slurm/run.sh" "${RECIPE:-base_32xv100}" "$@"
