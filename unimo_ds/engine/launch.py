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

import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator

from unimo_ds.config import EngineConfig
from unimo_ds.engine.signals import EXIT_INTERRUPTED
from unimo_ds.utils.errors import EXIT_BAD_INPUT, UserError
from unimo_ds.utils.launchers import local_rank, rank_environment

_GRACE = datetime.timedelta(minutes=5)
_NEVER = datetime.timedelta(days=1)


def start_processes(hang_minutes: float = EngineConfig.hang_minutes) -> torch.device:
    """Join the process group (making one of a single process where nothing launched us) and return this rank's device.

    hang_minutes: `engine.hang_minutes`. Collectives give up a little later than the watchdog, which tells more; 0: after a day.
    """
    if torch.distributed.is_initialized():
        return torch.device(get_accelerator().current_device_name())
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
    timeout = datetime.timedelta(minutes=hang_minutes) + _GRACE if hang_minutes else _NEVER
    _await_first_rank()
    deepspeed.init_distributed(timeout=timeout, verbose=False)
    return torch.device(get_accelerator().current_device_name())


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
    """At exit, when threads are joined and loader workers are gone.

    A rank that fails ends here, with its status. Leaving the group would wait for collectives that it has begun and others
    never join, while the launcher waits for this rank to end them. All other ranks leave the group: gloo's threads outlive
    a Python that ends without that, and now and then abort it.
    """
    error = getattr(sys, "last_value", None)  # what was told on stderr before this exit
    if error is None or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        stop_processes()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    interrupted = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    os._exit(EXIT_BAD_INPUT if isinstance(error, UserError) else interrupted)
