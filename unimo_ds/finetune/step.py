"""One optimizer step of a task: sums over micro-batches and ranks, divided once by the total count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch

from unimo_ds.data.schema import StepBatch
from unimo_ds.engine.setup import Engine
from unimo_ds.engine.step import StepMetrics
from unimo_ds.finetune import adversarial, contrast
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.model import TaskOutput
from unimo_ds.finetune.task import Task
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.models.unimo import anchor


class TaskStep:
    """Runs steps of a task, like pre-training's `train_step`."""

    def __init__(self, settings: FinetuneConfig, *, contrastive_path: str = "auto") -> None:
        """contrastive_path: see `engine.contrastive`."""
        self._settings, self._contrastive_path = settings, contrastive_path

    def __call__(
        self,
        engine: Engine,
        task: Task,
        batch: StepBatch,
        *,
        learning_rate: float,
        is_wanted: Callable[[float], bool] = lambda loss: True,
    ) -> StepMetrics:
        """Forward, backward and update over this rank's micro-batches. Every rank has the same number of them.

        Pairs that are also given as single encodings are contrasted over the whole step.

        is_wanted: as in `train_step`.
        """
        micro_batches = [cast(TaskBatch, one) for one in batch.micro_batches]
        singles = [one.singles for one in micro_batches]
        num_positions = sum(one.num_positions for one in (*micro_batches, *singles))
        mine = [
            sum(map(task.count, micro_batches)),
            sum(len(one.contrast.pair_image) for one in singles),
            num_positions,
        ]
        local_counts = torch.tensor(mine, dtype=torch.float64, device=engine.communicator.device)
        count, num_pairs, positions = engine.communicator.all_reduce_sum(local_counts).tolist()
        world_size, weight = engine.communicator.world_size, self._settings.retrieval.contrastive_weight
        scale = world_size / max(count, 1.0)
        engine.set_learning_rate(learning_rate)
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        temperature = torch.zeros((), device=engine.device)
        if num_pairs:
            contrast_scale, path = weight * world_size / num_pairs, self._contrastive_path
            sums[1] = contrast.accumulate(engine, singles, scale=contrast_scale, path=path).loss_sum
        for number, micro_batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            output: TaskOutput
            if self._settings.adversarial.steps:
                loss, output = adversarial.accumulate(
                    engine, task, micro_batch, finetuning=self._settings, scale=scale, is_last=is_last
                )
            else:
                on_device = micro_batch.to(engine.device)
                output = engine.forward(on_device)
                loss = task.loss_sum(output, on_device, self._settings)
                engine.backward(loss * scale + anchor(output), is_boundary=is_last)
            sums[0] += loss.detach()
            temperature = output.temperature.detach()
        known = {"task": (count, 1.0)} | ({"contrastive": (num_pairs, weight)} if num_pairs else {})
        measured = torch.cat((sums, temperature.double().reshape(1)))
        return _finish(engine, batch, known, measured, int(positions), learning_rate, is_wanted)


def _finish(
    engine: Engine,
    batch: StepBatch,
    known: Mapping[str, tuple[float, float]],
    measured: torch.Tensor,
    positions: int,
    learning_rate: float,
    is_wanted: Callable[[float], bool],
) -> StepMetrics:
    """known: number of terms of each loss over all ranks, and its weight. measured: sums of the losses on this rank, then the
    temperature: all that the host reads of the step. positions: over all ranks."""
    *totals, temperature = engine.communicator.all_reduce_sum(measured).tolist()
    means = {
        name: total / count if count else float("nan")
        for total, (name, (count, _)) in zip(totals, known.items(), strict=False)
    }
    mean = sum(weight * means[name] for name, (_, weight) in known.items())
    is_finite = math.isfinite(sum(totals))
    result = engine.step(is_finite=is_finite, is_wanted=is_wanted(mean))
    return StepMetrics(
        loss=mean if is_finite else float("nan"),
        losses=means,
        counts={name: int(count) for name, (count, _) in known.items()},
        accuracies={},
        positions=positions,
        bad_samples=len(batch.bad_samples),
        bytes_read=batch.bytes_read,
        gradient_norm=result.gradient_norm,
        loss_scale=result.loss_scale,
        temperature=temperature / engine.communicator.world_size,
        learning_rate=learning_rate,
        applied=result.applied,
    )
