"""Joining and leaving the process group through DeepSpeed, on the accelerator that it chooses."""

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
from unimo_ds.utils.launchers import device_environment, is_alone, local_rank, rank_environment
from unimo_ds.utils.running import exit_status

_GRACE = datetime.timedelta(minutes=5)
_NEVER = datetime.timedelta(days=1)
_DEFAULTS = EngineConfig()
WhatIsRead = TypeVar("WhatIsRead")


def start_run(
    read: Callable[[], WhatIsRead], settings_of: Callable[[WhatIsRead], EngineConfig]
) -> tuple[WhatIsRead, torch.device, Communicator]:
    """Read a run's input and join the process group with its settings. A collective; `read` must not call any.

    With a single process, bad input is reported before a process group is made.

    Raises:
        UserError: on all ranks, if `read` fails on any.
    """
    problem, settings = "", _DEFAULTS
    try:
        found = read()
        settings = settings_of(found)
    except UserError as error:
        if is_alone(os.environ):
            raise
        problem = str(error)
    try:
        device = start_processes(settings)
    except UserError as error:  # the input has a problem too, which is nearer to the user
        raise UserError(problem or str(error)) from None
    communicator = make_communicator(device)
    fail_together(communicator, problem)
    return found, device, communicator


def start_processes(settings: EngineConfig = _DEFAULTS) -> torch.device:
    """Join the process group (of a single process if there is no launcher) and return this rank's device.

    settings: only `hang_minutes` (collectives time out a little after the watchdog, which reports more; 0: after a day) and
    `deterministic` are used. Only the first call of a process has an effect.

    Raises:
        UserError: on rank 0, if the rendezvous port is taken.
    """
    if torch.distributed.is_initialized():
        return torch.device(get_accelerator().current_device_name())
    if settings.deterministic:
        _be_deterministic()
    os.environ.update(rank_environment(os.environ))
    faulthandler.enable()  # prints the Python stack of a crash in native code
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19.8 uses names of collectives that are deprecated in torch 2.13; users cannot change that.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    if get_accelerator().device_name() == "cpu":
        # Skip its shared-memory all-reduce, which the first start would compile; gloo needs no compiler. Our dictionary also
        # saves the compiler runs that fill DeepSpeed's at every start.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    else:
        index = local_rank(os.environ) % get_accelerator().device_count()
        get_accelerator().set_device(index)
        os.environ.update(device_environment(os.environ, index))
    atexit.register(_leave)
    minutes = settings.hang_minutes
    timeout = datetime.timedelta(minutes=minutes) + _GRACE if minutes else _NEVER
    _await_first_rank()
    try:
        deepspeed.init_distributed(timeout=timeout, verbose=False)
        device = torch.device(get_accelerator().current_device_name())
        if device.type == "cuda" and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(torch.zeros(1, device=device))  # NCCL looks at the GPUs no later than here
    except torch.distributed.DistError as error:
        sentence = _explained(str(error))
        if sentence is None:
            raise
        raise UserError(sentence) from None
    return device


def _explained(problem: str) -> str | None:
    """What to do about an error of torch.distributed at the start, None if it is none of the user's."""
    if "EADDRINUSE" in problem:
        return (
            f"port {os.environ.get('MASTER_PORT')} of this machine is taken, perhaps by another run; give the launcher another "
            "one: `deepspeed --master_port N`, `torchrun --master-port N`, or MASTER_PORT=N"
        )
    if "Duplicate GPU" in problem:
        return (
            f"there are more processes than GPUs on {socket.gethostname()}, where {torch.cuda.device_count()} can be seen; start "
            "one process per GPU (`deepspeed` does, as does `torchrun --nproc-per-node gpu`)"
        )
    return None


def _be_deterministic() -> None:
    """Call before anything runs on the device: cuBLAS reads the size of its workspaces only once."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only for debugging


def _await_first_rank() -> None:
    """Wait until rank 0 has opened the rendezvous, but at most one second: torch retries only after a second.

    The ranks of a machine start together, so most of them would come too early and delay all.
    """
    rank, host, port = (os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    if rank in (None, "0") or host is None or port is None:  # if None, DeepSpeed gets them from MPI
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
    """Runs at exit, after threads are joined and loader workers are gone. With several ranks it ends the process (`os._exit`).

    A failed rank would wait for collectives that it started and others never join, while the launcher waits for this rank to
    exit before ending them. A finished rank leaves the group, but must not run Python's shutdown: DeepSpeed keeps destroyed
    groups, so gloo's threads live on; one that frees the last collective's tensor during shutdown cannot get the GIL any more
    and aborts the process (pytorch/pytorch#190489).
    """
    if not torch.distributed.is_initialized():
        return
    error = getattr(sys, "last_value", None)  # the uncaught exception, already printed on stderr
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
        mpi.Finalize()  # otherwise mpirun treats the rank as crashed
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
