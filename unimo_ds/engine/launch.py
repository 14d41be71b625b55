"""Joining and leaving the process group under DeepSpeed, on the accelerator that it has chosen."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import faulthandler
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator

from unimo_ds.config import EngineConfig
from unimo_ds.utils.agreement import fail_together
from unimo_ds.utils.communicator import Communicator, make_communicator
from unimo_ds.utils.errors import EXIT_INTERRUPTED, UserError
from unimo_ds.utils.launchers import is_alone, local_rank, rank_environment
from unimo_ds.utils.running import exit_status

_GRACE = datetime.timedelta(minutes=5)
_NEVER = datetime.timedelta(days=1)
_DEFAULTS = EngineConfig()
WhatIsRead = TypeVar("WhatIsRead")


def start_run(
    read: Callable[[], WhatIsRead], settings_of: Callable[[WhatIsRead], EngineConfig]
) -> tuple[WhatIsRead, torch.device, Communicator]:
    """Read what decides a run and join the process group that it asks for. A collective, which `read` holds none of.

    Bad input is told before any process group is made where there is one process alone.

    Raises:
        UserError: on all ranks, what is wrong with it on any.
    """
    problem, settings = "", _DEFAULTS
    try:
        found = read()
        settings = settings_of(found)
    except UserError as error:
        if is_alone(os.environ):
            raise
        problem = str(error)
    device = start_processes(settings)
    communicator = make_communicator(device)
    fail_together(communicator, problem)
    return found, device, communicator


def start_processes(settings: EngineConfig = _DEFAULTS) -> torch.device:
    """Join the process group (making one of a single process where nothing launched us) and return this rank's device.

    settings: of them `hang_minutes` (collectives give up a little later than the watchdog, which tells more; 0: after a day) and
    `deterministic`. The first call of a process decides.

    Raises:
        UserError: on rank 0, something else listens where the ranks are to meet.
    """
    if torch.distributed.is_initialized():
        return torch.device(get_accelerator().current_device_name())
    if settings.deterministic:
        _be_deterministic()
    os.environ.update(rank_environment(os.environ))
    faulthandler.enable()  # a crash in native code names the Python line it came from
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 renames; nothing a user could change.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    if get_accelerator().device_name() == "cpu":
        # Its shared-memory all-reduce would be compiled at the first start; gloo needs no compiler. A dictionary of our own
        # saves every start the compilers that fill DeepSpeed's.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    else:
        get_accelerator().set_device(local_rank(os.environ) % get_accelerator().device_count())
    atexit.register(_leave)
    minutes = settings.hang_minutes
    timeout = datetime.timedelta(minutes=minutes) + _GRACE if minutes else _NEVER
    _await_first_rank()
    try:
        deepspeed.init_distributed(timeout=timeout, verbose=False)
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ.get('MASTER_PORT')} of this machine is taken, perhaps by another run; give the launcher another "
            "one: `deepspeed --master_port N`, `torchrun --master-port N`, or MASTER_PORT=N"
        ) from None
    return torch.device(get_accelerator().current_device_name())


def _be_deterministic() -> None:
    """Before anything runs on the device: cuBLAS reads the size of its workspaces once."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # finds bugs, changes no result


def _await_first_rank() -> None:
    """Come to the rendezvous just after rank 0 has opened it, or after a second: torch tries again only then.

    Ranks of one machine start together, so most of them would come too early and make all wait.
    """
    rank, host, port = (os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    if rank in (None, "0") or host is None or port is None:  # or DeepSpeed asks MPI
        return
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            return
        time.sleep(0.01)


def stop_processes() -> None:
    """Leave the process group, if it is still joined."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _leave() -> None:
    """At exit, when threads are joined and loader workers are gone. Several ranks end here, with their status.

    One that fails would wait for collectives that it has begun and others never join, while the launcher waits for this rank
    to end them. One that is done leaves the group, but not by Python's end: DeepSpeed keeps groups that are destroyed, so
    gloo's threads live on, and one that drops the last collective's tensor while Python ends wants Python's lock, gets it no
    more, and aborts the process (pytorch/pytorch#190489).
    """
    if not torch.distributed.is_initialized():
        return
    error = getattr(sys, "last_value", None)  # what was told on stderr before this exit
    is_alone = torch.distributed.get_world_size() == 1
    if error is None or is_alone:
        stop_processes()
    status = exit_status()
    if error is not None and not isinstance(error, UserError):
        status = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    if is_alone or status is None:
        return
    mpi = sys.modules.get("mpi4py.MPI") if error is None else None
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()  # mpirun takes a rank that leaves this out for a crash
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
