"""Whether ranks on CPUs will find the memory that a plan of their run names, before anything is allocated."""

from __future__ import annotations

import dataclasses
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.engine.ds_config import zero_stage
from unimo_ds.planning.plan import assumed_cost, counted_cost, stage_memory
from unimo_ds.planning.rates import HARDWARE
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import memory_gib

_USABLE = 0.8
"""Of a machine's memory. A rank of `single_gpu` cut to four layers peaked at 0.7 GiB for itself (Python and its libraries) and
1.2 times the planned activations."""


def check_host_memory(
    config: RunConfig,
    corpus: Corpus,
    engine_settings: Mapping[str, Any],
    *,
    device: torch.device,
    communicator: Communicator,
) -> None:
    """Refuse what the kernel would end for its memory, where `device`, which this rank trains on, is a CPU. A collective.

    Raises:
        UserError: on all ranks, naming the machine and the ways out.
    """
    if device.type != "cpu":
        return
    machines = communicator.all_gather_object((socket.gethostname(), memory_gib()))
    if not config.engine.check_memory:
        return
    if problem := shortage(config, corpus, machines, stage=zero_stage(engine_settings)):
        raise UserError(problem)


def shortage(config: RunConfig, corpus: Corpus, machines: Sequence[tuple[str, float]], *, stage: int) -> str:
    """What is wrong, if anything.

    machines: of every rank, the name of its machine and that machine's memory in GiB.
    """
    num_ranks = Counter(machines)
    (host, has), ranks_there = min(num_ranks.items(), key=lambda item: item[0][1] / item[1])
    share = dataclasses.replace(HARDWARE["cpu"], memory_gib=_USABLE * has / ranks_there)
    # What is assumed costs nothing to know and is high; only where it does not fit is the data looked at.
    for find_cost in (assumed_cost, lambda settings: counted_cost(settings, corpus)):
        cost, _ = find_cost(config)
        memory = stage_memory(config, cost, stage=stage, devices=len(machines), hardware=share)
        if memory.fits:
            return ""
    return (
        f"no GPU is at hand, and on CPUs recipe {config.recipe!r} wants about {memory.total:.0f} GiB for each rank "
        f"({ranks_there} on {host}, which has {has:.0f} GiB); look for the GPU with `unimo doctor`, take --recipe small, or "
        "lower batch.micro_batch_tokens (`unimo plan --hardware cpu`); engine.check_memory=false starts all the same"
    )
