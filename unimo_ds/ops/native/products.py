"""Products of 16-bit matrices with fp32 results: cuBLAS on a GPU, fp32 arithmetic on the CPU, where the kernels are emulated."""

from __future__ import annotations

import functools

import torch


def multiply(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> None:
    """result = left @ right. left [m, k], right [k, n] fp16 or bf16; result [m, n] fp32."""
    if left.is_cuda:
        torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=result)
    else:
        result.copy_(left.float() @ right.float())


def multiply_add(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, *, fresh: bool) -> None:
    """result += left @ right, or where `fresh` result = left @ right."""
    if fresh:
        multiply(left, right, result)
    elif not left.is_cuda:
        result += left.float() @ right.float()
    elif _adds_to_fp32(left.device, left.dtype):
        torch.ops.aten.addmm.dtype_out(result, left, right, torch.float32, out=result)
    else:
        result += torch.ops.aten.mm.dtype(left, right, torch.float32)


@functools.cache
def _adds_to_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds a 16-bit product to an fp32 matrix in one call: the first releases with it wanted equal dtypes."""
    small = torch.ones(16, 16, device=device, dtype=dtype)
    total = torch.ones(16, 16, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(total, small, small, torch.float32, out=total)
    except RuntimeError:
        return False
    return True
