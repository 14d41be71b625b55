"""What an objective of pre-training is. A new one is a new file here, a line in `pretraining.OBJECTIVES` and its weight in
`config.LossWeights` (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import PackedBatch
from unimo_ds.models.heads import ObjectiveHead
from unimo_ds.models.unimo import ModelOutput


@dataclass(frozen=True)
class Objective:
    """A named loss as (sum, count)."""

    name: str
    """In logs, and of its weight, a field of `config.LossWeights`."""
    count: Callable[[PackedBatch], int]
    """What the loss sums over; of a batch on the host."""
    loss_sum: Callable[[ModelOutput, PackedBatch], torch.Tensor]
    """fp32 scalar; of a batch on the device, but for its `contrast` table."""
    make_head: Callable[[ModelConfig], ObjectiveHead] | None = None
    """Of an objective whose loss needs more than the model gives; what the head says is `ModelOutput.heads[name]`."""
