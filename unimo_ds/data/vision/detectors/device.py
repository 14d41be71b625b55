"""The device of a worker: a machine's workers are distributed over its GPUs."""

from __future__ import annotations

import os

import torch

_LOCAL_NUMBERS = ("UNIMO_WORKER", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")
"""Variables with the number of this process among its machine's workers, set by this program or by MPI launchers."""


def worker_device() -> torch.device:
    """GPU number (worker modulo GPUs), or the CPU if there is none."""
    count = num_gpus()
    if not count:
        return torch.device("cpu")
    number = next((int(os.environ[name]) for name in _LOCAL_NUMBERS if os.environ.get(name, "").isdigit()), 0)
    return torch.device("cuda", number % count)


def num_gpus() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
