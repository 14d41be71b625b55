"""One optimizer step of a task: sums over micro-batches and ranks, divided once by the count over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch

from unimo_ds.data.schema import StepBatch
from unimo_ds.engine.setup import Engine
from unimo_ds.engine.step import StepMetrics
from unimo_ds.finetune import adversarial
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.model import TaskOutput
from unimo_ds.finetune.task import Task
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.models.unimo import anchor


class TaskStep:
    """Takes steps of a task; `Loop` calls it as it calls pre-training's `train_step`."""

    def __init__(self, settings: FinetuneConfig) -> None:
        self._settings = settings

    def __call__(
        self,
        engine: Engine,
        task: Task,
        batch: StepBatch,
        *,
        learning_rate: float,
        is_wanted: Callable[[float], bool] = lambda loss: True,
    ) -> StepMetrics:
        """Forward, backward and update over this rank's micro-batches. Every rank calls it with equally many of them.

        is_wanted: as in `train_step`.
        """
        micro_batches = [cast(TaskBatch, one) for one in batch.micro_batches]
        local_count = torch.tensor([sum(task.count(one) for one in micro_batches)], dtype=torch.float64)
        count = float(engine.communicator.all_reduce_sum(local_count.to(engine.device)))
        scale = engine.communicator.world_size / max(count, 1.0)
        engine.set_learning_rate(learning_rate)
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
        temperature = 0.0
        for number, micro_batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            on_device = cast(TaskBatch, micro_batch.to(engine.device))
            if self._settings.adversarial.steps:
                loss_sum += adversarial.accumulate(
                    engine, task, on_device, finetuning=self._settings, scale=scale, is_last=is_last
                )
                continue
            output: TaskOutput = engine.forward(on_device)
            loss = task.loss_sum(output, on_device, self._settings)
            engine.backward(loss * scale + anchor(output), is_boundary=is_last)
            loss_sum += loss.detach()
            temperature = float(output.temperature.detach())
        return _finish(engine, batch, micro_batches, loss_sum, count, temperature, learning_rate, is_wanted)


def _finish(
    engine: Engine,
    batch: StepBatch,
    micro_batches: Sequence[TaskBatch],
    loss_sum: torch.Tensor,
    count: float,
    temperature: float,
    learning_rate: float,
    is_wanted: Callable[[float], bool],
) -> StepMetrics:
    positions = sum(one.num_positions for one in micro_batches)
    packed = torch.stack((loss_sum, loss_sum.new_tensor(positions)))
    total, all_positions = engine.communicator.all_reduce_sum(packed).tolist()
    mean = total / count if count else float("nan")
    is_finite = math.isfinite(total)
    result = engine.step(is_finite=is_finite, is_wanted=is_wanted(mean))
    return StepMetrics(
        loss=mean if is_finite else float("nan"),
        losses={"task": mean},
        counts={"task": int(count)},
        accuracies={},
        positions=int(all_positions),
        bad_samples=len(batch.bad_samples),
        bytes_read=batch.bytes_read,
        gradient_norm=result.gradient_norm,
        loss_scale=result.loss_scale,
        temperature=temperature,
        learning_rate=learning_rate,
        applied=result.applied,
    )
