"""A fine-tuned model's answers for every example of a split, distributed over the ranks and gathered in order.

Letters: E examples, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.schema import PackedBatch
from unimo_ds.evaluation.encode import Evaluable, deal, evaluating, micro_batches
from unimo_ds.finetune.batch import TaskExample, pack_examples
from unimo_ds.finetune.model import TaskOutput
from unimo_ds.utils import heartbeat
from unimo_ds.utils.communicator import Communicator

Item = TypeVar("Item")


class TaskEngine(Evaluable, Protocol):
    """What evaluation needs of an engine: the trainer's, or a loaded model."""

    def forward(self, batch: PackedBatch, /) -> TaskOutput: ...


class Scorable(Protocol):
    """What scoring needs of `task.Examples`: all of example `index` is a function of (index, seed), the same on every rank."""

    @property
    def feature_size(self) -> int:
        """Of the regions; 1 if there are none."""
        ...

    @property
    def target_size(self) -> int:
        """K"""
        ...

    def __len__(self) -> int: ...

    def lengths(self, index: int, seed: int) -> list[int]:
        """Positions of each sequence, without reading images."""
        ...

    def make(self, index: int, seed: int) -> TaskExample:
        """seed: of this visit, for random draws and dropout."""
        ...


def scores(engine: TaskEngine, examples: Scorable, *, micro_batch_tokens: int) -> NDArray[np.float32]:
    """[E, K] the head's scores of the first sequence of every example, on every rank. A collective.

    Micro-batches depend only on the lengths, so any number of ranks computes the same streams.
    """

    def run(items: NDArray[np.int64]) -> NDArray[np.float32]:
        made = [examples.make(item, 0) for item in items.tolist()]
        batch = pack_examples(made, feature_size=examples.feature_size, target_size=examples.target_size)
        found = engine.forward(batch.to(engine.device)).scores.float().cpu().numpy()
        per_example = len(made[0].sequences) if made else 1
        result: NDArray[np.float32] = found[::per_example]
        return result

    lengths = np.array([sum(examples.lengths(index, 0)) for index in range(len(examples))], np.int64)
    with evaluating(engine):
        parts = over_ranks(engine.communicator, lengths, run, micro_batch_tokens=micro_batch_tokens)
    found = [part for part in parts if len(part)]
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def over_ranks(
    communicator: Communicator,
    lengths: NDArray[np.int64],
    run: Callable[[NDArray[np.int64]], Item],
    *,
    micro_batch_tokens: int,
) -> list[Item]:
    """Apply `run` to every micro-batch of items, each on one rank; results in order, on every rank. A collective.

    Every rank calls `run` equally often, sometimes without items.
    """
    batches = micro_batches(lengths, micro_batch_tokens=micro_batch_tokens)
    dealt = deal(batches, world_size=communicator.world_size)
    mine = []
    for items in dealt[communicator.rank]:
        mine.append(run(items))
        heartbeat.beat()
    everyone: Sequence[list[Any]] = communicator.all_gather_object(mine)
    rounds = len(dealt[0])
    in_order = [everyone[rank][turn] for turn in range(rounds) for rank in range(communicator.world_size)]
    return in_order[: len(batches)]
