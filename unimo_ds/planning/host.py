"""Whether CPU ranks have the memory that their run is planned to need, checked before anything is allocated."""

from __future__ import annotations

import dataclasses
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.engine.ds_config import zero_stage
from unimo_ds.planning.cost import SampleCost, assumed_cost, counted_cost
from unimo_ds.planning.memory import StageMemory, frozen_parameters, stage_memory
from unimo_ds.planning.rates import HARDWARE
from unimo_ds.utils.agreement import failing_together
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import memory_gib

_FEWEST_TOKENS = 512
"""In a micro-batch size that is proposed."""


def check_host_memory(
    config: RunConfig,
    costs: Iterable[SampleCost],
    engine_settings: Mapping[str, Any],
    *,
    device: torch.device,
    communicator: Communicator,
) -> None:
    """Refuse a run that the kernel would kill for its memory, if `device`, where this rank trains, is a CPU. A collective.

    costs: of a sample; see `shortage`.

    Raises:
        UserError: on all ranks, naming the machine and the cures, or as `memory.frozen_parameters`.
    """
    if device.type != "cpu" or not config.engine.check_memory:
        return
    machines = communicator.all_gather_object((socket.gethostname(), memory_gib()))
    with failing_together(communicator):
        if problem := shortage(config, costs, machines, stage=zero_stage(engine_settings)):
            raise UserError(problem)


def shortage(
    config: RunConfig, costs: Iterable[SampleCost], machines: Sequence[tuple[str, float]], *, stage: int
) -> str:
    """The message if memory is too small for all `costs`, else empty.

    costs: estimates for a sample, from the cheapest to the most exact; the next one is made only if the run would not fit.
    machines: for every rank, the name of its machine and the GiB of memory that the ranks there may use.
    """
    num_ranks = Counter(machines)
    (host, has), ranks_there = min(num_ranks.items(), key=lambda item: item[0][1] / item[1])
    frozen = frozen_parameters(config)
    share = dataclasses.replace(HARDWARE["cpu"], memory_gib=has / ranks_there)

    def memory_of(tokens: int, cost: SampleCost) -> StageMemory:
        batch = dataclasses.replace(config.batch, micro_batch_tokens=tokens)
        asked = dataclasses.replace(config, batch=batch)
        return stage_memory(asked, cost, stage=stage, devices=len(machines), hardware=share, frozen=frozen)

    most = config.batch.micro_batch_tokens
    for cost in costs:
        memory = memory_of(most, cost)
        if memory.fits:
            return ""
    fewer = [most >> halvings for halvings in range(1, most.bit_length()) if most >> halvings >= _FEWEST_TOKENS]
    fitting = next((tokens for tokens in fewer if memory_of(tokens, cost).fits), None)
    cure = (
        "take a smaller model or recipe"
        if fitting is None
        else f"set batch.micro_batch_tokens={fitting}, which would fit"
    )
    return (
        f"no GPU is at hand, and on CPUs recipe {config.recipe!r} wants about {memory.total:.0f} GiB for each rank "
        f"({ranks_there} on {host}, where {has:.0f} GiB may be used); look for the GPU with `unimo doctor`, or {cure} "
        "(`unimo plan --hardware cpu`); engine.check_memory=false starts all the same"
    )


def pretraining_costs(config: RunConfig, corpus: Corpus) -> Iterator[SampleCost]:
    """First the assumed cost, which is high, then the cost counted in the data."""
    yield assumed_cost(config)[0]
    yield counted_cost(config, corpus)[0]


def example_cost(lengths: Sequence[Sequence[int]], image_lengths: Sequence[Sequence[int]] = ()) -> SampleCost:
    """Cost of a fine-tuning example, only as needed for its memory.

    lengths: for each of some examples, the lengths of its sequences in positions. image_lengths: for each of some, the lengths
    of the images that image layers encode.
    """
    positions, squared_lengths = _totals(lengths)
    regions, squared_images = _totals(image_lengths)
    return SampleCost(positions or 1.0, squared_lengths or 1.0, regions=regions, squared_images=squared_images)


def _totals(lengths: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Sum of lengths, and of their squares, averaged over examples."""
    everything = [length for one in lengths for length in one]
    number = max(1, len(lengths))
    return sum(everything) / number, sum(length * length for length in everything) / number
