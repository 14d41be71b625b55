"""Description of the machine that a run records, and its devices by name."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from unimo_ds.utils.errors import UserError

PEAK_TERAFLOPS = {
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
}
"""Peak of dense half-precision matrix products, by the first key found in a device's name, from the vendor's data sheets."""
_GIB = 2**30
_LOCAL_NUMBERS = ("UNIMO_WORKER", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")
"""Variables with the number of this process among its machine's workers, set by this program or by MPI launchers."""


_CHOSEN: ContextVar[torch.device | None] = ContextVar("_CHOSEN", default=None)


def describe_machine() -> dict[str, Any]:
    """Host name, processor, number of cores and GiB of memory that this process may use, and its visible GPUs."""
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    return {
        "host": socket.gethostname(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_gib(), 1),
        "gpus": gpus,
        "cuda": torch.version.cuda or "",
        "system": platform.platform(),
    }


def memory_gib() -> float:
    """Of this machine, or the limit of this Slurm job or container, including what is in use."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit()) / _GIB


def memory_limit(groups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control groups of this process allow, version 1 or 2; infinite if none sets a limit.

    groups: file that lists its groups. mounts: where groups are mounted. Limits of enclosing groups apply too. In a container
    without a cgroup namespace the listed group is not mounted, and its limit is at the top.
    """
    limit = math.inf
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return limit
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, name = mounts, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mounts / "memory", "memory.limit_in_bytes"
        else:
            continue
        lowest = top / group.lstrip("/")
        for folder in (lowest, *lowest.parents):
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # not shown here, or `max`
                    limit = min(limit, int((folder / name).read_text()))
    return limit


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_of(name: str | None) -> torch.device | None:
    """The device of that name; None for None.

    Raises:
        UserError: this machine has no such device.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on a device without memory, such as `meta`
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; give cpu or cuda") from None
    return device


@contextlib.contextmanager
def networks_on(device: torch.device | None) -> Iterator[None]:
    """Inside, `worker_device` is this one; None: as outside."""
    before = _CHOSEN.set(_CHOSEN.get() if device is None else device)
    try:
        yield
    finally:
        _CHOSEN.reset(before)


def worker_device() -> torch.device:
    """For networks that prepare data: that of `networks_on`, GPU number (worker modulo GPUs), or the CPU if there is none."""
    chosen = _CHOSEN.get()
    if chosen is not None:
        return chosen
    count = num_gpus()
    if not count:
        return torch.device("cpu")
    number = next((int(os.environ[name]) for name in _LOCAL_NUMBERS if os.environ.get(name, "").isdigit()), 0)
    return torch.device("cuda", number % count)


def num_gpus() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
