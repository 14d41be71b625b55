# What this cluster is like: edit it once, every script beside it reads it. See docs/cluster.md.
# Sourced by jobs, and before sbatch where the cluster wants a partition or an account:
#   source slurm/environment.sh && sbatch slurm/base.sh

# Who pays and where it runs. sbatch reads these, and they win over the lines in the scripts.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_project
# export SBATCH_CONSTRAINT=v100-32g

# The program: an environment on a file system that all nodes see ...
# module load cuda/12.6
PYTHON=${PYTHON:-.venv/bin/python}
# ... or a container (pyxis), whose own Python it then is:
# PYTHON=python
# SRUN_OPTIONS+=(--container-image=/shared/unimo_ds.sqsh --container-mounts="$PWD:$PWD" --container-workdir="$PWD")

# The prepared data (a folder that holds train/ and held_out/; several: A::B), on a file system that all nodes see.
DATA=${DATA:-data}

# The network between nodes, where NCCL and gloo guess wrong (`ip -brief address` on a node lists the names).
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5

# What the check of the nodes asks of them (`unimo doctor preflight --help`), e.g. that an all-reduce over all GPUs reaches 5 GB/s:
# PREFLIGHT_OPTIONS+=(--min-bandwidth=5 --min-free-gib=100)

# What reproduce.sh tells sbatch and `unimo prepare` beside what the scripts say, e.g. a detector on the GPUs of four nodes:
# PREPARE_OPTIONS=(--nodes=4 --ntasks-per-node=8 --cpus-per-task=4 --gpus-per-node=8)
# PREPARE_ARGUMENTS=(--executor mpi)

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
