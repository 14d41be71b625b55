"""Pooled vectors of many sequences: distributed over the ranks in packed micro-batches, then gathered in the original order.

Letters: n sequences, D size of a pooled vector. Micro-batches depend only on the lengths, never on the number of ranks, so
every world size encodes the same streams and the results agree; and every rank runs equally many forwards (some empty), which
ZeRO-3 needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import PackedBatch, SequenceInput
from unimo_ds.models.unimo import ModelOutput
from unimo_ds.utils import heartbeat
from unimo_ds.utils.communicator import Communicator, SingleProcess

Integers = NDArray[np.int64]


class Evaluable(Protocol):
    """What evaluation needs of an engine; `OneDevice` is one without DeepSpeed."""

    @property
    def module(self) -> torch.nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def communicator(self) -> Communicator: ...

    def forward(self, batch: PackedBatch, /) -> ModelOutput: ...


Output = TypeVar("Output", bound=ModelOutput)


@dataclass(frozen=True)
class OneDevice(Generic[Output]):
    """A model on its device (an `Evaluable`)."""

    module: torch.nn.Module
    device: torch.device
    communicator: Communicator = field(default_factory=SingleProcess, kw_only=True)

    def forward(self, batch: PackedBatch, /) -> Output:
        output: Output = self.module(batch)
        return output


@dataclass(frozen=True)
class Pooled:
    """Pooled vectors in the order of the sequences, on every rank; no image (or text) rows if the sequences have none."""

    images_nD: torch.Tensor
    """[n, D] float32 or [0, D]"""
    texts_nD: torch.Tensor
    """[n, D] float32 or [0, D]"""


@contextlib.contextmanager
def evaluating(engine: Evaluable) -> Iterator[None]:
    """Turn off dropout and gradients; the module's mode is restored afterwards."""
    was_training = engine.module.training
    engine.module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.module.train(was_training)


def micro_batches(lengths: Integers, *, micro_batch_tokens: int) -> list[Integers]:
    """Item numbers of each micro-batch: consecutive items (which often share a sample to read), filled to the token budget.

    An item longer than the budget gets a micro-batch of its own.
    """
    batches: list[Integers] = []
    start, tokens = 0, 0
    for item, length in enumerate(lengths.tolist()):
        if item > start and tokens + length > micro_batch_tokens:
            batches.append(np.arange(start, item))
            start, tokens = item, 0
        tokens += length
    if start < len(lengths):
        batches.append(np.arange(start, len(lengths)))
    return batches


def deal(batches: list[Integers], *, world_size: int) -> list[list[Integers]]:
    """Assign micro-batches to ranks in turn; ranks that are short get empty ones: [world_size][rounds]."""
    rounds = -(-len(batches) // world_size)
    nothing = np.zeros(0, np.int64)
    padded = batches + [nothing] * (rounds * world_size - len(batches))
    return [padded[rank::world_size] for rank in range(world_size)]


def encode(
    engine: Evaluable,
    lengths: Integers,
    make: Callable[[int], SequenceInput | tuple[SequenceInput, ...]],
    *,
    micro_batch_tokens: int,
    feature_size: int,
) -> Pooled:
    """Encode `make(0)`, ..., `make(n - 1)`, all of one kind (images, texts or pairs). A collective.

    lengths: [n] of every item, known to all ranks. make: called only for this rank's items; an item may be several sequences
    that together hold one image and one text.
    feature_size: of the regions, for micro-batches that have none.
    """
    world = engine.communicator.world_size
    dealt = deal(micro_batches(lengths, micro_batch_tokens=micro_batch_tokens), world_size=world)
    images: list[torch.Tensor] = []
    texts: list[torch.Tensor] = []
    with evaluating(engine):
        for items in dealt[engine.communicator.rank]:
            made = [make(item) for item in items.tolist()]
            sequences = [one for item in made for one in (item if isinstance(item, tuple) else (item,))]
            output = engine.forward(pack_sequences(sequences, feature_size=feature_size).to(engine.device))
            heartbeat.beat()
            images.append(output.pooled_images.float())
            texts.append(output.pooled_texts.float())
        if not images:
            nothing = torch.zeros(0, 0, device=engine.device)
            return Pooled(nothing, nothing)
        order = np.concatenate([items for batches in dealt for items in batches])
        return Pooled(
            _in_order(_gather(engine.communicator, torch.cat(images)), order),
            _in_order(_gather(engine.communicator, torch.cat(texts)), order),
        )


def _gather(communicator: Communicator, rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, in rank order."""
    return communicator.all_gather_rows(rows, communicator.row_counts(len(rows)))


def _in_order(rows_nD: torch.Tensor, order: Integers) -> torch.Tensor:
    """Row `order[j]` of the result is row j of `rows_nD`."""
    if not len(rows_nD):
        return rows_nD
    if len(rows_nD) != len(order):
        raise ValueError(f"{len(order)} sequences gave {len(rows_nD)} pooled vectors; all must be of one kind")
    result = torch.empty_like(rows_nD)
    result[torch.from_numpy(order).to(rows_nD.device)] = rows_nD
    return result
