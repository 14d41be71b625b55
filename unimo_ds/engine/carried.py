"""Gradients that are already known, given to a backward pass.

Written as a sum of products, a loss whose gradients are known takes an operator or more for each product and sum, and as many
again to differentiate them: sixty in a step of two micro-batches, of a microsecond each on a GPU and ten on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def carried(tensors: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """A scalar 0 in fp32 whose gradient for each of the tensors is the given one, of the same shape.

    gradients: any floating dtype; multiplied by the scalar's own gradient (a loss scale) before they are rounded to the
    tensor's dtype.
    """
    scalar: torch.Tensor = _Carried.apply(gradients, *tensors)  # type: ignore[no-untyped-call]
    return scalar


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: Sequence[torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.gradients, ctx.dtypes = gradients, [tensor.dtype for tensor in tensors]
        return gradients[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pairs = zip(ctx.gradients, ctx.dtypes, strict=True)
        return None, *((upstream[0] * gradient).to(dtype) for gradient, dtype in pairs)
