"""One rank's part of each fine-tuning step, with the interface of pre-training's reader.

The examples of a step are a pure function of (number of examples, seed, step), and a visit's random draws are one of (seed,
position); so the global batch is the same for every number of ranks, and a run can resume at any step without replay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from unimo_ds.config import KindWeights, RunConfig
from unimo_ds.data.balance import estimate_costs, split_step
from unimo_ds.data.mixture import Order
from unimo_ds.data.schema import Kind, StepBatch
from unimo_ds.finetune.batch import pack_examples
from unimo_ds.finetune.task import Examples
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import mix

_VISIT = 0x76697369


class StepTooLarge(UserError):
    """A step that no rank can run: one of its examples is too long for a micro-batch."""


class TaskReader:
    """Makes any step of a run."""

    def __init__(self, examples: Examples, config: RunConfig, *, rank: int, world_size: int) -> None:
        """Raises:
        UserError: no examples.
        """
        if not len(examples):
            raise UserError(f"{config.data.path} holds no training example")
        self._examples, self._config = examples, config
        self._rank, self._world_size = rank, world_size
        zeros = np.zeros(len(examples), np.int64)
        weights = KindWeights(image=0.0, text=1.0, pair=0.0)
        self._order = Order(zeros + Kind.TEXT, zeros, zeros, weights, seed=config.seed)

    def steps(self, start: int, stop: int) -> Iterator[StepBatch]:
        """Steps start .. stop - 1 in order; a thread makes `data.prefetch_steps` of them ahead.

        Raises:
            UserError: as `read`.
        """
        pending: deque[Future[StepBatch]] = deque()
        with ThreadPoolExecutor(max_workers=1) as ahead:
            for step in range(start, stop):
                pending.append(ahead.submit(self.read, step))
                if len(pending) > self._config.data.prefetch_steps:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def read(self, step: int) -> StepBatch:
        """This rank's micro-batches of a step.

        Raises:
            StepTooLarge: raised on all ranks.
            UserError: an example of this rank cannot be read.
        """
        size = self._config.batch.global_samples
        positions = np.arange(step * size, (step + 1) * size)
        indices = self._order.samples_at(positions).tolist()
        seeds = [mix(self._config.seed, position, _VISIT) for position in positions.tolist()]
        lengths = [self._examples.lengths(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        counts = [len(one) for one in lengths]
        try:
            split = split_step(
                estimate_costs(
                    np.concatenate([np.array(one, np.int64) for one in lengths]),
                    np.concatenate([[0], np.cumsum(counts)]),
                    hidden_size=self._config.model.hidden_size,
                ),
                np.array([sum(one) for one in lengths], np.int64),
                world_size=self._world_size,
                micro_batch_tokens=self._config.batch.micro_batch_tokens,
                name_of=lambda row: f"example {self._examples.key(indices[row])}",
            )
        except UserError as error:
            raise StepTooLarge(str(error)) from None
        micro_batches = tuple(
            pack_examples(
                [self._examples.make(indices[row], seeds[row]) for row in rows.tolist()],
                feature_size=self._examples.feature_size,
                target_size=self._examples.target_size,
            )
            for rows in split[self._rank]
        )
        return StepBatch(step=step, micro_batches=micro_batches, num_samples=size)
