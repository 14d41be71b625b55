# Describes this cluster to every script in this folder: edit it once. See docs/cluster.md.
# Jobs source it. If the cluster requires a partition or an account, source it before sbatch too:
#   source slurm/environment.sh && sbatch slurm/base.sh

# Account and partition. sbatch reads these variables, and they override the #SBATCH lines in the scripts.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_CONSTRAINT=v100-32g

# The Python environment, on a file system of all nodes ...
# module load cuda/12.6
PYTHON=${PYTHON:-.venv/bin/python}
# ... or a container (pyxis) with its own Python:
# PYTHON=python
# SRUN_OPTIONS+=(--container-image=/shared/unimo_ds.sqsh --container-mounts="$PWD:$PWD" --container-workdir="$PWD")

# The prepared data (a folder with train/ and held_out/; several: A::B), on a file system of all nodes.
DATA=${DATA:-data}

# The network between nodes, if NCCL and gloo choose the wrong interface (`ip -brief address` on a node lists the names).
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# Options of the check of the nodes (`unimo doctor preflight --help`), e.g. to require 5 GB/s from an all-reduce over all GPUs:
# PREFLIGHT_OPTIONS+=(--min-bandwidth=5 --min-free-gib=100)

# Further options of sbatch and `unimo prepare` in reproduce.sh, e.g. for a detector on the GPUs of four nodes:
# PREPARE_OPTIONS=(--nodes=4 --ntasks-per-node=8 --cpus-per-task=4 --gpus-per-node=8)
# PREPARE_ARGUMENTS=(--executor mpi)

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
