"""Who am I among the processes: torchrun, `deepspeed`, mpirun and srun say it differently; plain python is a group of one."""

from __future__ import annotations

import datetime
import faulthandler
import logging
import os
import re
import socket
import warnings
from collections.abc import Mapping

import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator

TIMEOUT = datetime.timedelta(minutes=15)
"""A collective that waits longer than this ends the run with the rank's stack, so that a hung rank cannot burn days."""

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def start_processes() -> torch.device:
    """Join the process group (making one of a single process where nothing launched us) and return this rank's device."""
    if torch.distributed.is_initialized():
        return torch.device(get_accelerator().current_device_name())
    os.environ.update(rank_environment(os.environ))
    faulthandler.enable()  # a crash in native code names the Python line it came from
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 renames; nothing a user could change.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    if get_accelerator().device_name() == "cpu":
        # Its shared-memory all-reduce would be compiled at the first start; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        get_accelerator().set_device(local_rank(os.environ) % get_accelerator().device_count())
    deepspeed.init_distributed(timeout=TIMEOUT, verbose=False)
    return torch.device(get_accelerator().current_device_name())


def local_rank(environment: Mapping[str, str]) -> int:
    """This process's number on its machine. MPI has its own names for it; DeepSpeed copies them too late, after the device
    was chosen. Where a launcher shows each process one GPU alone, the caller takes it modulo the number of GPUs.
    """
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"):
        if name in environment:
            return int(environment[name])
    return 0


def stop_processes() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What must be added to `environment` for `torch.distributed` to find its peers.

    Empty where a launcher set it (torchrun, deepspeed) or where DeepSpeed asks MPI (mpirun); Slurm's numbers under srun;
    a group of one on a free port otherwise.
    """
    if all(name in environment for name in _NAMES):
        return {}
    slurm_tasks = environment.get("SLURM_STEP_NUM_TASKS") if "SLURM_PROCID" in environment else None
    # Under Slurm, MPI's launchers start one helper per node with srun, whose numbers are not ours; srun itself may offer PMI.
    if any(name in environment for name in ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")):
        return {}
    if environment.get("PMI_SIZE", slurm_tasks) != slurm_tasks:
        return {}
    if slurm_tasks is not None:
        found = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": slurm_tasks,
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", ""))),
            # Jobs that share a node must not share a port.
            "MASTER_PORT": str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000),
        }
    else:
        found = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
    return {name: value for name, value in found.items() if name not in environment}


def first_host(node_list: str) -> str:
    """First name of a Slurm node list: `gpu[03-05,7],login` -> `gpu03`. An empty list is this machine."""
    if not node_list:
        return "127.0.0.1"
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", node_list)
    if match is None:
        return node_list
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + (suffix or "")


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
