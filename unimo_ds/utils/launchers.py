"""A process's rank and peers, which torchrun, `deepspeed`, mpirun and srun each pass in a different way."""

from __future__ import annotations

import functools
import os
import re
import socket
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def local_rank(environment: Mapping[str, str]) -> int:
    """This process's number on its machine. MPI has its own names for it; DeepSpeed copies them only after the device was
    chosen. Some launchers show each process only one GPU, so the caller takes it modulo the number of GPUs.
    """
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"):
        if name in environment:
            return int(environment[name])
    return 0


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environment` so that `torch.distributed` finds the other ranks.

    Empty if a launcher has set them (torchrun, deepspeed) or if DeepSpeed gets them from MPI (mpirun over several machines);
    mpirun's own numbers on one machine; Slurm's under srun; a group of one on a free port otherwise.
    """
    if all(name in environment for name in _NAMES):
        return {}
    slurm_tasks = environment.get("SLURM_STEP_NUM_TASKS") if "SLURM_PROCID" in environment else None
    num_here = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    # Under Slurm, MPI's launchers start one helper per node with srun; its numbers are not ours. srun itself may set PMI's.
    is_mpi = any(name in environment for name in ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))
    is_mpi = is_mpi or environment.get("PMI_SIZE", slurm_tasks) != slurm_tasks
    place: Sequence[str]
    if num_here is not None and num_here == environment.get("OMPI_COMM_WORLD_SIZE") and "PMIX_NAMESPACE" in environment:
        # Without starting MPI, which would make every rank wait for a second.
        rank, local = environment["OMPI_COMM_WORLD_RANK"], environment["OMPI_COMM_WORLD_LOCAL_RANK"]
        port = _port(zlib.crc32(environment["PMIX_NAMESPACE"].encode()))
        place = (rank, num_here, local, "127.0.0.1", str(port))
    elif is_mpi:
        return {}
    elif slurm_tasks is not None:
        rank, local = environment["SLURM_PROCID"], environment.get("SLURM_LOCALID", "0")
        host = next(iter(host_names(environment.get("SLURM_STEP_NODELIST", ""))), "127.0.0.1")
        place = (rank, slurm_tasks, local, host, str(slurm_port(environment)))
    else:
        place = ("0", "1", "0", "127.0.0.1", str(free_port()))
    return {name: value for name, value in zip(_NAMES, place, strict=True) if name not in environment}


def device_environment(environment: Mapping[str, str], index: int) -> dict[str, str]:
    """Variables to set in `environment` so that DeepSpeed 0.19.8 takes the device `index`. It takes a process's number on its
    machine for it, which it is not where each process sees only its own GPU, and refuses to start if mpirun's number differs.
    """
    others = [name for name in ("OMPI_COMM_WORLD_LOCAL_RANK",) if name in environment]
    return dict.fromkeys(["LOCAL_RANK", *others], str(index))


def is_alone(environment: Mapping[str, str]) -> bool:
    """Whether this is the only process of the run, started by a launcher or by none."""
    return {**environment, **rank_environment(environment)}.get("WORLD_SIZE") == "1"


def slurm_port(environment: Mapping[str, str]) -> int:
    """A port that all tasks of a Slurm step compute without communication.

    It must differ between jobs on one node, between successive steps, and between starts of a requeued job, since a lost node
    may still run a process of an earlier one.
    """
    job, step, restarts = (
        int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    return _port(16 * job + (step + 5 * restarts) % 16)


def _port(number: int) -> int:
    """A port outside the range that systems use for outgoing connections."""
    return 20000 + number % 12000


def host_names(node_list: str) -> list[str]:
    """The names in a Slurm node list: `gpu[03-05,7],login` -> gpu03, gpu04, gpu05, gpu7, login. Several brackets multiply."""
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", node_list):
        names = [""]
        for text, numbers in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            names = [name + end for name in names for end in ([text] if text else _numbers(numbers))]
        found += names
    return found


def _numbers(ranges: str) -> list[str]:
    """`03-05,7` -> 03, 04, 05, 7."""
    found: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += [f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return found


def free_port() -> int:
    """A TCP port that is unused at this moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


_LAUNCHERS = {
    *("deepspeed", "torchrun", "mpirun", "mpiexec", "orterun", "prterun", "orted", "prted", "hydra_pmi_proxy"),
    *("torch.distributed.run", "torch.distributed.launch", "deepspeed.launcher.runner", "deepspeed.launcher.launch"),
}


@functools.cache
def launcher_processes() -> tuple[int, ...]:
    """Process ids from this process's parent up to the outermost launcher; empty without one.

    As found at the first call: some may end later.
    """
    found: list[int] = []
    process = os.getppid()
    while process > 1 and _LAUNCHERS & {Path(word).name for word in _command(process)[:4]}:
        found.append(process)
        process = parent_of(process)
    return tuple(found)


def has_lost_launcher(launchers: Sequence[int]) -> bool:
    """Whether any process that `launcher_processes` found has ended: its child then has another parent."""
    parents = [os.getppid(), *map(parent_of, launchers[:-1])]
    return any(parent != launcher for parent, launcher in zip(parents, launchers, strict=False))


def parent_of(process: int) -> int:
    """Process id of the parent; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
