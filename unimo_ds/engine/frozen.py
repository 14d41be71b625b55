"""Frozen weights (`optimizer.rate_factors` of 0): not given to the optimizer, but checkpoints hold them like the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from unimo_ds.engine.checkpoint_folder import WEIGHT
from unimo_ds.engine.partitions import Masters, own_part


class WithFrozen(Masters):
    """The masters of the trained weights, plus the frozen weights: unpartitioned, in fp32, with zero moments."""

    def __init__(self, trained: Masters, frozen: Mapping[Any, torch.Tensor]) -> None:
        """frozen: by parameter, in fp32 and its shape; may share the parameter's memory."""
        self.trained, self.frozen = trained, frozen

    def read(self, parameter: Any, slot: str) -> torch.Tensor:
        if parameter not in self.frozen:
            return self.trained.read(parameter, slot)
        return self.frozen[parameter] if slot == WEIGHT else torch.zeros_like(self.frozen[parameter])

    def write(self, parameter: Any, slot: str, value: torch.Tensor) -> None:
        if parameter not in self.frozen:
            self.trained.write(parameter, slot, value)
        elif slot == WEIGHT:
            self.frozen[parameter].copy_(value)

    def publish(self) -> None:
        for parameter, weight in self.frozen.items():
            if hasattr(parameter, "ds_tensor"):  # ZeRO-3; `trained.publish` gathers persistent parameters
                parameter.ds_tensor.copy_(own_part(parameter, weight))
            else:
                parameter.data.copy_(weight)
        self.trained.publish()

    def poison(self) -> None:
        self.trained.poison()

    def forget(self) -> None:
        self.trained.forget()


def frozen_weights(model: torch.nn.Module, *, is_kept_elsewhere: bool) -> dict[Any, torch.Tensor]:
    """The frozen parameters of a model, for `WithFrozen`. Call before `deepspeed.initialize`.

    is_kept_elsewhere: DeepSpeed will round or partition the parameters, so keep exact copies in host memory.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if is_kept_elsewhere:
        return {parameter: parameter.detach().float().cpu().clone() for parameter in frozen}
    return {parameter: parameter.detach() for parameter in frozen}
