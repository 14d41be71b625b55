"""A pre-training objective. To add one, add a file here, a line in `pretraining.OBJECTIVES` and its weight in
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
    """In logs; also that of its weight, a field of `config.LossWeights`."""
    count: Callable[[PackedBatch], int]
    """Number of terms of the loss in a batch on the host."""
    loss_sum: Callable[[ModelOutput, PackedBatch], torch.Tensor]
    """fp32 scalar; from a batch on the device, except for its `contrast` table."""
    make_head: Callable[[ModelConfig], ObjectiveHead] | None = None
    """Makes the objective's own head, if its loss needs one; its output is in `ModelOutput.heads[name]`."""
