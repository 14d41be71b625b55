"""Products of 16-bit matrices with fp32 results: cuBLAS on a GPU, fp32 arithmetic on the CPU, where kernels are emulated."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

Adder = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], None]
"""(left, right, result, fresh): result += left @ right, or if fresh, result = left @ right."""


def multiply(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> None:
    """result = left @ right. left [m, k], right [k, n] fp16 or bf16; result [m, n] fp32."""
    if left.is_cuda:
        torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=result)
    else:
        result.copy_(left.float() @ right.float())


def adder(like: torch.Tensor) -> Adder:
    """For matrices of a tensor's dtype and device."""
    if not like.is_cuda:
        return _add_on_host
    return _add if _adds_to_fp32(like.device, like.dtype) else _add_apart


def _add(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, fresh: bool) -> None:
    if fresh:
        torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=result)
    else:
        torch.ops.aten.addmm.dtype_out(result, left, right, torch.float32, out=result)


def _add_apart(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, fresh: bool) -> None:
    if fresh:
        torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=result)
    else:
        result += torch.ops.aten.mm.dtype(left, right, torch.float32)


def _add_on_host(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, fresh: bool) -> None:
    product = left.float() @ right.float()
    if fresh:
        result.copy_(product)
    else:
        result += product


@functools.cache
def _adds_to_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a 16-bit product to an fp32 matrix in one call: the first releases with it need equal dtypes."""
    small = torch.ones(16, 16, device=device, dtype=dtype)
    total = torch.ones(16, 16, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(total, small, small, torch.float32, out=total)
    except RuntimeError:
        return False
    return True
