"""Products with weights; in fp32 for low-precision inputs on CPUs without low-precision instructions, where torch is slow.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from unimo_ds.ops.own_precision import own_precision

_LOW_PRECISION = (torch.bfloat16, torch.float16)
_HAS_BF16_INSTRUCTIONS = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def widens(tensor: torch.Tensor) -> bool:
    """Whether products of this tensor are computed in fp32 and rounded back.

    Without AVX512-BF16 or AMX, torch's bf16 products on CPU run 5 to 90 times slower than fp32 ones (measured on AVX2:
    7 GFLOP/s forward and 1 GFLOP/s for the gradient of the input, against 60 to 80 in fp32), and fp16 ones are worse.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in _LOW_PRECISION:
        return False
    return tensor.dtype == torch.float16 or not _HAS_BF16_INSTRUCTIONS


def linear(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """`x @ weight.T + bias`, [N, O] in `x_NI`'s dtype; plain torch unless `widens` is true."""
    if not widens(x_NI):
        return functional.linear(x_NI, weight_OI, bias_O)
    result: torch.Tensor = _WideLinear.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return result


class _WideLinear(torch.autograd.Function):
    """Inputs are widened, the product is fp32, the result is rounded once; gradients likewise."""

    @staticmethod
    @own_precision
    def forward(ctx: Any, x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.has_bias = bias_O is not None
        bias = None if bias_O is None else bias_O.float()
        return functional.linear(x_NI.float(), weight_OI.float(), bias).to(x_NI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        gradient_NO = gradients[0].float()
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (gradient_NO @ weight_OI.float()).to(x_NI.dtype)
        if ctx.needs_input_grad[1]:
            weight_grad = (gradient_NO.t() @ x_NI.float()).to(weight_OI.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            bias_grad = gradient_NO.sum(0).to(weight_OI.dtype)
        return x_grad, weight_grad, bias_grad
