"""A linear layer and gelu in one op: the first half of every feed-forward sub-layer.

Letters: T rows, I inputs, F outputs.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from unimo_ds.ops.linear import linear
from unimo_ds.ops.native import bias_gelu as native
from unimo_ds.ops.paths import Path, choose


def linear_gelu(
    x_TI: torch.Tensor, weight_FI: torch.Tensor, bias_F: torch.Tensor, *, path: str = "auto"
) -> torch.Tensor:
    """`gelu(x @ weight.T + bias)`, [T, F], with the exact gelu, x * (normal distribution function of x).

    path: `native` (CUDA kernels: fp16 or bf16; gelu's kernels also add the bias and sum its gradient), `plain` (torch: the
    bias is part of the product, its gradient another pass), or `auto`.
    """
    if path == "auto" and x_TI.dtype == torch.float32 and not torch.is_grad_enabled():
        # The kernels take only 16 bits, and choosing a path costs a small model's decoding 9 us per layer.
        return _plain(x_TI, weight_FI, bias_F)
    return choose("linear_gelu", path, _PATHS, x_TI, bias_F)(x_TI, weight_FI, bias_F)


def _native(x_TI: torch.Tensor, weight_FI: torch.Tensor, bias_F: torch.Tensor) -> torch.Tensor:
    return native.bias_gelu(linear(x_TI, weight_FI, None), bias_F)


def _plain(x_TI: torch.Tensor, weight_FI: torch.Tensor, bias_F: torch.Tensor) -> torch.Tensor:
    return functional.gelu(linear(x_TI, weight_FI, bias_F))


_PATHS = {"native": Path(_native, native.refusal), "plain": Path(_plain)}
