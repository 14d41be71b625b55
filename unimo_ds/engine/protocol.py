"""The interface that a step needs from an engine: DeepSpeed (`setup.Engine`) or plain PyTorch in `benchmarks/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unimo_ds.utils.communicator import Communicator


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step."""

    applied: bool
    """False if all ranks skipped the update: unwanted, or the loss or gradient was not finite."""
    gradient_norm: float
    """Over all parameters and ranks, before clipping and without loss scale; inf or nan if the step was skipped."""
    loss_scale: float
    """Scale before this step (1 unless fp16)."""


class StepEngine(Protocol):
    """Forward, backward and update of one model over all ranks; documented in `setup.Engine`."""

    device: torch.device
    communicator: Communicator

    def forward(self, *arguments: Any) -> Any: ...

    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None: ...

    def step(self, *, is_finite: bool = True, is_wanted: bool = True) -> StepResult: ...

    def set_learning_rate(self, learning_rate: float) -> None: ...
