"""What each step will read, without reading it: the body of `unimo inspect order`."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset

from unimo_ds.config import RunConfig
from unimo_ds.data.loader import as_it_is
from unimo_ds.data.step_plan import OrderedCorpus, StepPlanner
from unimo_ds.utils.errors import UserError

StepOrder = dict[str, Any]


def inspect_order(
    corpus: OrderedCorpus, config: RunConfig, *, steps: range, world_size: int, num_workers: int = 0
) -> dict[str, list[StepOrder]]:
    """Per step the global batch in position order, and which rank gets which samples, as keys:
    `{"steps": [{"step": n, "global_batch": [key, ...], "ranks": [[key, ...], ...]}]}`.

    num_workers: loader processes that make the plans, as in training; the result does not depend on it.
    The time taken does not depend on the first step. Substitutes for unreadable samples are not known before reading.

    Raises:
        UserError: an invalid range or count, and as `step_plan.StepPlanner`.
    """
    if world_size < 1 or num_workers < 0:
        raise UserError(f"--world-size {world_size} and --workers {num_workers} must be at least 1 and 0")
    # Compared as numbers: len() fails beyond 64 bits.
    if steps.start < 0 or steps.step != 1 or not steps.start < steps.stop <= 2**62 // config.batch.global_samples:
        raise UserError(f"--steps {steps.start}:{steps.stop} must be A:B with 0 <= A < B, in a stream of 2**62 samples")
    plans = _Plans(corpus, StepPlanner(corpus, config, world_size=world_size))
    loader: DataLoader[StepOrder] = DataLoader(
        plans, batch_size=None, sampler=steps, collate_fn=as_it_is, num_workers=num_workers
    )
    found = list(loader)
    refused = [item["refused"] for item in found if "refused" in item]
    if refused:
        raise UserError(refused[0])
    return {"steps": found}


def parse_steps(text: str) -> range:
    """`A:B` as the range of steps A .. B - 1.

    Raises:
        UserError: anything else.
    """
    first, separator, stop = text.partition(":")
    if not (separator and first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
        raise UserError(f"--steps {text!r} must be A:B with whole numbers 0 <= A < B")
    return range(int(first), int(stop))


class _Plans(Dataset[StepOrder]):
    def __init__(self, corpus: OrderedCorpus, planner: StepPlanner) -> None:
        self._corpus, self._planner = corpus, planner

    def __getitem__(self, step: int) -> StepOrder:
        try:
            planned = self._planner.plan(step)
        except UserError as error:
            return {"step": step, "refused": str(error)}
        keys = [self._corpus.key(sample) for sample in planned.samples.tolist()]
        ranks = [sorted(row for micro_batch in rank for row in micro_batch.tolist()) for rank in planned.split]
        return {"step": step, "global_batch": keys, "ranks": [[keys[row] for row in rank] for rank in ranks]}
