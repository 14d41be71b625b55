"""One optimizer step: all objectives in one gradient-carrying forward per micro-batch.

Sums and counts. Counts come from packing and are summed over ranks before the first backward; each micro-batch then
contributes weight * sum * world_size / global count (DeepSpeed averages gradients over ranks), so N ranks equal one rank.

The contrastive group. Pairs of the whole step are each other's negatives, so their loss needs every pooled vector at once.
It is taken on detached vectors, which gives one gradient per vector; a micro-batch's backward then carries the sum of
vector * gradient, whose derivative is the same. Where the step has several micro-batches, a rehearsal without gradients
yields the vectors first. Dropout masks are functions of the sequence seeds, so rehearsal and replay see the same network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from unimo_ds.data.schema import PackedBatch, StepBatch
from unimo_ds.engine.protocol import StepEngine
from unimo_ds.models.unimo import ModelOutput
from unimo_ds.tasks.pretraining import PretrainingTask, join_tables


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured, over all ranks."""

    loss: float
    """Weighted total."""
    losses: dict[str, float]
    """Mean of each loss; nan where the step had none of it."""
    counts: dict[str, int]
    accuracies: dict[str, float]
    """Share right; nan where nothing was asked."""
    positions: int
    """Stream positions of the global batch."""
    bad_samples: int
    bytes_read: int
    gradient_norm: float
    loss_scale: float
    temperature: float
    learning_rate: float
    applied: bool
    """False where the update was skipped: unwanted, or for a loss or gradient that is not finite."""


@dataclass(frozen=True)
class _Contrast:
    """The contrastive loss of the step and its gradient for every pooled vector of this rank, by micro-batch."""

    loss_sum: torch.Tensor
    accuracies: dict[str, tuple[torch.Tensor, torch.Tensor]]
    image_gradients: Sequence[torch.Tensor]
    text_gradients: Sequence[torch.Tensor]
    temperature_gradient: torch.Tensor


def train_step(
    engine: StepEngine,
    task: PretrainingTask,
    batch: StepBatch,
    *,
    learning_rate: float,
    is_wanted: Callable[[float], bool] = lambda loss: True,
) -> StepMetrics:
    """Forward, backward and update over this rank's micro-batches. Every rank calls it with equally many of them.

    is_wanted: given the total loss, whether to update; a pure function, since every rank asks for itself.
    """
    local_counts = task.counts(batch.micro_batches).to(engine.device)
    counts = engine.communicator.all_reduce_sum(local_counts).tolist()
    micro_batches = [micro_batch.to(engine.device) for micro_batch in batch.micro_batches]
    last = len(micro_batches) - 1
    scales = [
        objective.weight * engine.communicator.world_size / max(count, 1.0)
        for objective, count in zip(task.objectives, counts, strict=False)
    ]
    num_pairs = counts[-1]
    engine.set_learning_rate(learning_rate)

    only_output = engine.forward(micro_batches[0]) if last == 0 else None
    contrast = None
    if num_pairs:
        outputs = [only_output] if only_output is not None else _rehearse(engine, micro_batches)
        scale = task.contrast_weight * engine.communicator.world_size / num_pairs
        contrast = _contrast(engine, task, micro_batches, outputs, scale=scale)

    sums = torch.zeros(len(task.names), dtype=torch.float64, device=engine.device)
    temperature = torch.zeros((), device=engine.device)
    for index, micro_batch in enumerate(micro_batches):
        output = only_output if only_output is not None else engine.forward(micro_batch)
        local = torch.stack([objective.loss_sum(output, micro_batch) for objective in task.objectives])
        loss = sum((value * scale for value, scale in zip(local, scales, strict=True)), start=_anchor(output))
        if contrast is not None:
            loss = loss + _carry(output, contrast, index)
        engine.backward(loss, is_boundary=index == last)
        sums[:-1] += local.detach()
        temperature = output.temperature.detach()
    if contrast is not None:
        sums[-1] = contrast.loss_sum
    return _finish(engine, task, batch, sums, counts, contrast, temperature, learning_rate, is_wanted)


def _rehearse(engine: StepEngine, micro_batches: Sequence[PackedBatch]) -> list[ModelOutput]:
    """Outputs of every micro-batch without gradients, for the pooled vectors alone: the other heads get no rows."""
    with torch.no_grad():
        return [engine.forward(_without_targets(micro_batch)) for micro_batch in micro_batches]


def _without_targets(batch: PackedBatch) -> PackedBatch:
    names = (
        "language_at",
        "language_targets",
        "language_objectives",
        "masked_region_at",
        "masked_region_features",
        "masked_region_class_ids",
        "masked_region_class_probabilities",
    )
    return dataclasses.replace(batch, **{name: getattr(batch, name)[:0] for name in names})


def _contrast(
    engine: StepEngine,
    task: PretrainingTask,
    micro_batches: Sequence[PackedBatch],
    outputs: Sequence[ModelOutput],
    *,
    scale: float,
) -> _Contrast:
    # In fp32: these gradients carry no loss scale, and small ones would vanish in fp16.
    images = torch.cat([output.pooled_images.detach().float() for output in outputs]).requires_grad_()
    texts = torch.cat([output.pooled_texts.detach().float() for output in outputs]).requires_grad_()
    temperature = outputs[0].temperature.detach().requires_grad_()
    with torch.enable_grad():
        result = task.contrastive(
            images, texts, join_tables(micro_batches), temperature=temperature, communicator=engine.communicator
        )
        gradients = torch.autograd.grad(
            result.loss_sum * scale, (images, texts, temperature), allow_unused=True, materialize_grads=True
        )
    return _Contrast(
        loss_sum=result.loss_sum.detach(),
        accuracies=result.accuracies,
        image_gradients=torch.split(gradients[0], [len(output.pooled_images) for output in outputs]),
        text_gradients=torch.split(gradients[1], [len(output.pooled_texts) for output in outputs]),
        temperature_gradient=gradients[2],
    )


def _carry(output: ModelOutput, contrast: _Contrast, index: int) -> torch.Tensor:
    """A scalar whose gradient is the contrastive loss's; the temperature's share rides on the first micro-batch alone."""
    carried = (output.pooled_images.float() * contrast.image_gradients[index]).sum()
    carried = carried + (output.pooled_texts.float() * contrast.text_gradients[index]).sum()
    return carried + output.temperature * (contrast.temperature_gradient if index == 0 else 0.0)


def _anchor(output: ModelOutput) -> torch.Tensor:
    """Zero, connected to every output: each rank runs the same backward whatever its mix of samples (ZeRO-3 needs it)."""
    outputs = (
        output.pooled_images,
        output.pooled_texts,
        output.language_losses,
        output.region_predictions,
        output.region_class_logits,
    )
    return torch.stack([tensor[:0].sum().float() for tensor in outputs]).sum() + output.temperature * 0.0


def _finish(
    engine: StepEngine,
    task: PretrainingTask,
    batch: StepBatch,
    sums: torch.Tensor,
    counts: Sequence[float],
    contrast: _Contrast | None,
    temperature: torch.Tensor,
    learning_rate: float,
    is_wanted: Callable[[float], bool],
) -> StepMetrics:
    """Sum what was measured over ranks (one collective), decide together whether to update, and update."""
    extra = [sum(item.num_positions for item in batch.micro_batches), len(batch.bad_samples), batch.bytes_read]
    right_and_asked = [] if contrast is None else [value for pair in contrast.accuracies.values() for value in pair]
    packed = torch.cat(
        (
            sums,
            torch.tensor(extra, dtype=torch.float64, device=engine.device),
            torch.stack([value.to(torch.float64) for value in right_and_asked])
            if right_and_asked
            else sums.new_zeros(0),
        )
    )
    totals = engine.communicator.all_reduce_sum(packed).tolist()
    num_losses = len(task.names)
    means = {
        name: total / count if count else float("nan")
        for name, total, count in zip(task.names, totals, counts, strict=False)
    }
    weights = [objective.weight for objective in task.objectives] + [task.contrast_weight]
    loss = sum(weight * mean for weight, mean in zip(weights, means.values(), strict=True) if mean == mean)
    accuracies = {
        name: right / asked if asked else float("nan")
        for name, right, asked in zip(
            contrast.accuracies if contrast is not None else (),
            totals[num_losses + 3 :: 2],
            totals[num_losses + 4 :: 2],
            strict=True,
        )
    }
    is_finite = all(abs(total) < float("inf") for total in totals[:num_losses])
    result = engine.step(is_finite=is_finite, is_wanted=is_wanted(loss))
    return StepMetrics(
        loss=loss if is_finite else float("nan"),
        losses=means,
        counts={name: int(count) for name, count in zip(task.names, counts, strict=True)},
        accuracies=accuracies,
        positions=int(totals[num_losses]),
        bad_samples=int(totals[num_losses + 1]),
        bytes_read=int(totals[num_losses + 2]),
        gradient_norm=result.gradient_norm,
        loss_scale=result.loss_scale,
        temperature=float(temperature),
        learning_rate=learning_rate,
        applied=result.applied,
    )
