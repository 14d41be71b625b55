"""Initial weights: truncated normal for matrices and tables, 0 for biases, identity for layer norms (released UNIMO code)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def initialize(module: nn.Module, *, deviation: float, generator: torch.Generator) -> None:
    """Fill every parameter of `module` in place, in the order of `named_parameters()`.

    Matrices: normal of standard deviation `deviation`, truncated at two deviations. Vectors named `weight` (layer norms): 1;
    those named `bias`: 0; padding rows of tables (`padding_idx`): 0. Everything else (the temperature) keeps its initial
    value.
    """
    for name, parameter in module.named_parameters():
        last_name = name.rpartition(".")[2]
        if parameter.dim() >= 2:
            nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
        elif last_name in ("weight", "bias"):
            parameter.fill_(1.0 if last_name == "weight" else 0.0)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx] = 0
