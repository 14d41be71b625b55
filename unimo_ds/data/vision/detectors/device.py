"""Which device a worker computes on: workers of a machine are dealt out over its GPUs."""

from __future__ import annotations

import os

import torch

_LOCAL_NUMBERS = ("UNIMO_WORKER", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")
"""Who this process is among the workers of its machine, as this program and launchers of MPI ranks say it."""


def worker_device() -> torch.device:
    """GPU number (worker modulo GPUs), or the CPU where there is none."""
    count = num_gpus()
    if not count:
        return torch.device("cpu")
    number = next((int(os.environ[name]) for name in _LOCAL_NUMBERS if os.environ.get(name, "").isdigit()), 0)
    return torch.device("cuda", number % count)


def num_gpus() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
