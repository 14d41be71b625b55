"""A plain PyTorch engine with the interface of `unimo_ds.engine`: compared with DeepSpeed, and its substitute if it is missing.

bf16 weights have fp32 masters, which the optimizer updates, as in DeepSpeed. Several ranks use `DistributedDataParallel`.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import nn

from unimo_ds.config import OptimizerConfig
from unimo_ds.engine.protocol import StepResult
from unimo_ds.utils.communicator import make_communicator


class PlainEngine:
    """Forward, backward and AdamW update of a model; see `unimo_ds.engine.protocol.StepEngine`."""

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = device
        self.communicator = make_communicator(device)
        self.module = model.to(device)
        self._clip_norm = config.clip_norm
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._masters = parameters
        if dtype != torch.float32:
            self._masters = [parameter.detach().float().clone().requires_grad_() for parameter in parameters]
            self._master_gradients = [torch.zeros_like(master) for master in self._masters]
            model.to(dtype)
        self._parameters = parameters
        groups = [
            {"params": [one for one in self._masters if one.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [one for one in self._masters if one.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=config.peak_learning_rate, betas=config.betas, eps=config.epsilon, fused=True
        )
        self._callable: Any = model
        if self.communicator.world_size > 1:
            self._callable = _Distributed(model, bucket_cap_mb=25.0, gradient_as_bucket_view=True)

    def forward(self, *arguments: Any) -> Any:
        return self._callable(*arguments)

    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None:
        waits = contextlib.nullcontext() if is_boundary or self._callable is self.module else self._callable.no_sync()
        with waits:
            loss.backward()

    def step(self, *, is_finite: bool = True, is_wanted: bool = True) -> StepResult:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        gradient_norm = float(norm)
        applied = is_finite and is_wanted and math.isfinite(gradient_norm)
        if applied:
            if self._masters is not self._parameters:
                for master, parameter, gradient in zip(
                    self._masters, self._parameters, self._master_gradients, strict=True
                ):
                    master.grad = None if parameter.grad is None else gradient
                with torch.no_grad():
                    torch._foreach_copy_([one.grad for one in self._masters if one.grad is not None], gradients)
            self._optimizer.step()
            if self._masters is not self._parameters:
                with torch.no_grad():
                    torch._foreach_copy_(self._parameters, self._masters)
        for parameter in (*self._parameters, *self._masters):
            parameter.grad = None
        return StepResult(applied=applied, gradient_norm=gradient_norm, loss_scale=1.0)

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate


class _Distributed(nn.parallel.DistributedDataParallel):
    """Has a name of its own, so that profiles show it separately."""
