"""Joining and leaving the process group under DeepSpeed, on the accelerator that it has chosen."""

from __future__ import annotations

import atexit
import datetime
import faulthandler
import logging
import os
import warnings

import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator

from unimo_ds.utils.launchers import local_rank, rank_environment

TIMEOUT = datetime.timedelta(minutes=15)
"""A collective that waits longer than this ends the run with the rank's stack, so that a hung rank cannot burn days."""


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
        # Its shared-memory all-reduce would be compiled at the first start; gloo needs no compiler. A dictionary of our own
        # saves every start the compilers that fill DeepSpeed's.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
        # Gloo's threads outlive a Python that ends without leaving the group (on bad input, for one) and now and then abort
        # it, so that a launcher sees SIGABRT where the status was 2.
        atexit.register(stop_processes)
    else:
        get_accelerator().set_device(local_rank(os.environ) % get_accelerator().device_count())
    deepspeed.init_distributed(timeout=TIMEOUT, verbose=False)
    return torch.device(get_accelerator().current_device_name())


def stop_processes() -> None:
    """Leave the process group, if it is still joined."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
