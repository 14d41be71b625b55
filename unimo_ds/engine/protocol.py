"""What a step asks of an engine, whoever runs it: DeepSpeed (`setup.Engine`) or plain PyTorch in `benchmarks/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unimo_ds.utils.communicator import Communicator


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    applied: bool
    """False where all ranks skipped the update: unwanted, or for a loss or gradient that is not finite."""
    gradient_norm: float
    """Over all parameters and ranks, before clipping and without loss scale; inf or nan where the step was skipped."""
    loss_scale: float
    """Scale in use before this step (1 but for fp16)."""


class StepEngine(Protocol):
    """Forward, backward and update of one model over all ranks; see `setup.Engine` for what each promises."""

    device: torch.device
    communicator: Communicator

    def forward(self, *arguments: Any) -> Any: ...

    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None: ...

    def step(self, *, is_finite: bool = True, is_wanted: bool = True) -> StepResult: ...

    def set_learning_rate(self, learning_rate: float) -> None: ...
