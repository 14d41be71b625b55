"""One optimizer step: all objectives in one gradient-carrying forward per micro-batch.

Sums and counts. Counts come from packing and are summed over ranks before the first backward; each micro-batch then
contributes weight * sum * world_size / global count (DeepSpeed averages gradients over ranks), so N ranks equal one rank. These
factors are known before, so no loss is added up before its backward pass (`carried.py`).

The contrastive group, whose pairs need every pooled vector of the step at once, is in `contrast.py`.

The host never waits for the GPU between the first forward and the last backward: what depends only on the batch is counted on
the host before and listed there meanwhile, and what was measured is read in one piece after (tests/engine/test_step.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unimo_ds.data.schema import StepBatch
from unimo_ds.engine.carried import carried
from unimo_ds.engine.contrast import Contrast, carry, contrast_of, rehearse
from unimo_ds.engine.protocol import StepEngine
from unimo_ds.losses.contrast_plan import join_tables, make_plan, share_sizes
from unimo_ds.losses.contrastive import ACCURACIES
from unimo_ds.models.unimo import anchor
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.moving import moved


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured, over all ranks."""

    loss: float
    """Weighted total."""
    losses: dict[str, float]
    """Mean of each loss; nan if the step had no term of it."""
    counts: dict[str, int]
    accuracies: dict[str, float]
    """Fraction correct; nan if nothing was compared."""
    positions: int
    """Stream positions of the global batch."""
    bad_samples: int
    bytes_read: int
    gradient_norm: float
    loss_scale: float
    temperature: float
    learning_rate: float
    applied: bool
    """False if the update was skipped: unwanted, or the loss or gradient was not finite."""

    def scalars(self) -> dict[str, float]:
        """Under the names that TensorBoard and metrics.jsonl show."""
        return {
            "loss/total": self.loss,
            **{f"loss/{name}": value for name, value in self.losses.items()},
            **{f"count/{name}": float(value) for name, value in self.counts.items()},
            **{f"accuracy/{name}": value for name, value in self.accuracies.items()},
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "loss_scale": self.loss_scale,
            "temperature": self.temperature,
            "positions": float(self.positions),
        }


@dataclass(frozen=True)
class _Known:
    """Totals of a step over all ranks, before anything is computed."""

    counts: Sequence[float]
    """Number of terms of each loss; pairs last."""
    positions: int
    bad_samples: int
    bytes_read: int


def train_step(
    engine: StepEngine,
    task: PretrainingTask,
    batch: StepBatch,
    *,
    learning_rate: float,
    is_wanted: Callable[[float], bool] = lambda loss: True,
) -> StepMetrics:
    """Forward, backward and update over this rank's micro-batches. Every rank has the same number of them.

    is_wanted: whether to update, given the total loss; a pure function, since every rank calls it.
    """
    known = _count(engine, task, batch)
    micro_batches = [micro_batch.to(engine.device) for micro_batch in batch.micro_batches]
    last = len(micro_batches) - 1
    *counts, num_pairs = known.counts
    scales = [
        weight * engine.communicator.world_size / max(count, 1.0)
        for weight, count in zip(task.weights, counts, strict=True)
    ]
    scales_L = moved(torch.tensor(scales), engine.device)
    engine.set_learning_rate(learning_rate)
    if num_pairs:
        table = join_tables(batch.micro_batches)
        sizes = share_sizes(table, engine.communicator)

    # While a GPU computes this, the host makes lists and launches the contrastive loss's many small kernels.
    first = engine.forward(micro_batches[0])
    contrast = None
    if num_pairs:
        others = rehearse(engine, batch.micro_batches[1:], micro_batches[1:])
        plan = make_plan(table, form=task.contrast.form, sizes=sizes).to(engine.device)
        scale = task.contrast_weight * engine.communicator.world_size / num_pairs
        contrast = contrast_of(engine, task, plan, [first, *others], scale=scale)

    sums = torch.zeros(len(task.names), dtype=torch.float64, device=engine.device)
    temperature = torch.zeros((), device=engine.device)
    for index, micro_batch in enumerate(micro_batches):
        output = engine.forward(micro_batch) if index else first
        sums_L = torch.stack([objective.loss_sum(output, micro_batch) for objective in task.objectives])
        loss = carried((sums_L,), (scales_L,))
        if contrast is not None:
            loss = loss + carry(output, contrast, index)
        if contrast is None or output.heads:  # otherwise both losses reach every output, of no rows too
            loss = loss + anchor(output)
        engine.backward(loss, is_boundary=index == last)
        sums[:-1] += sums_L.detach()
        temperature = output.temperature.detach()
    if contrast is not None:
        sums[-1] = contrast.loss_sum
    return _finish(engine, task, known, sums, contrast, temperature, learning_rate, is_wanted)


def _count(engine: StepEngine, task: PretrainingTask, batch: StepBatch) -> _Known:
    """One collective; with a single rank on host tensors."""
    positions = sum(micro_batch.num_positions for micro_batch in batch.micro_batches)
    mine = [*task.counts(batch.micro_batches), positions, len(batch.bad_samples), batch.bytes_read]
    communicator = engine.communicator
    totals = torch.tensor(mine, dtype=torch.float64, device=communicator.device)
    *counts, positions, bad_samples, bytes_read = communicator.all_reduce_sum(totals).tolist()
    return _Known(counts, int(positions), int(bad_samples), int(bytes_read))


def _finish(
    engine: StepEngine,
    task: PretrainingTask,
    known: _Known,
    sums: torch.Tensor,
    contrast: Contrast | None,
    temperature: torch.Tensor,
    learning_rate: float,
    is_wanted: Callable[[float], bool],
) -> StepMetrics:
    """Sum what was measured over ranks (one collective), decide together whether to update, and update."""
    num_losses = len(task.names)
    measured = [sums, temperature.double().reshape(1)] + ([] if contrast is None else [contrast.right_and_asked])
    totals = engine.communicator.all_reduce_sum(torch.cat(measured)).tolist()
    means = {
        name: total / count if count else float("nan")
        for name, total, count in zip(task.names, totals[:num_losses], known.counts, strict=True)
    }
    weights = [*task.weights, task.contrast_weight]
    loss = sum(weight * mean for weight, mean in zip(weights, means.values(), strict=True) if not math.isnan(mean))
    right_and_asked = totals[num_losses + 1 :]  # empty in a step without pairs
    middle = len(right_and_asked) // 2
    accuracies = {
        name: right / asked if asked else float("nan")
        for name, right, asked in zip(ACCURACIES, right_and_asked[:middle], right_and_asked[middle:], strict=False)
    }
    is_finite = all(map(math.isfinite, totals[:num_losses]))
    result = engine.step(is_finite=is_finite, is_wanted=is_wanted(loss))
    return StepMetrics(
        loss=loss if is_finite else float("nan"),
        losses=means,
        counts={name: int(count) for name, count in zip(task.names, known.counts, strict=True)},
        accuracies=accuracies,
        positions=known.positions,
        bad_samples=known.bad_samples,
        bytes_read=known.bytes_read,
        gradient_norm=result.gradient_norm,
        loss_scale=result.loss_scale,
        temperature=totals[num_losses] / engine.communicator.world_size,
        learning_rate=learning_rate,
        applied=result.applied,
    )
