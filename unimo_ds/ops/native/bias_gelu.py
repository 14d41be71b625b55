"""Bias and gelu by the CUDA kernels of `kernels/bias_gelu/`: `unimo::bias_gelu_forward` and `unimo::bias_gelu_backward`.

Letters: T rows, F columns.
"""

from __future__ import annotations

from typing import Any

import torch

from unimo_ds.ops.native import launcher, library

_ROWS = 4
_THREAD_COLUMNS = 1024
_BLOCKS = 132 * 7
"""Blocks resident on an H100 or H200, by the registers of the backward kernel (kernels/REPORT.md)."""


class BiasGeluArguments(launcher.Arguments):
    """`BiasGeluArguments` of kernels/bias_gelu/bias_gelu.cuh, field by field."""

    _fields_ = (
        *launcher.addresses("x bias result gradient x_gradient partials"),
        *launcher.integers("num_rows num_columns num_blocks"),
    )


def refusal(x_TI: torch.Tensor, bias_F: torch.Tensor) -> str | None:
    """Why the kernels cannot take this layer's input and bias, None if they can."""
    size = bias_F.shape[0]
    if size % 8:
        return f"the kernel is for a multiple of 8 columns, not {size}"
    if bias_F.dtype != x_TI.dtype:
        return f"the bias is {bias_F.dtype}, the layer's input {x_TI.dtype}"
    return library.refusal(x_TI)


def bias_gelu(x_TF: torch.Tensor, bias_F: torch.Tensor) -> torch.Tensor:
    """gelu(x + bias), [T, F]; summed in fp32, as is the gradient of the bias. Callers check `refusal` first."""
    result: torch.Tensor = bias_gelu_forward(x_TF, bias_F)
    return result


def _arguments(x: torch.Tensor, bias: torch.Tensor) -> BiasGeluArguments:
    num_rows, num_columns = x.shape
    slabs = -(-num_columns // _THREAD_COLUMNS)
    return BiasGeluArguments(
        x=x,
        bias=bias,
        num_rows=num_rows,
        num_columns=num_columns,
        num_blocks=min(-(-num_rows // _ROWS), -(-_BLOCKS // slabs)),
    )


def _forward(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x, bias = launcher.aligned(x), launcher.aligned(bias)
    result = torch.empty_like(x)
    arguments = _arguments(x, bias)
    arguments.set(result=result)
    launcher.bound("unimo_bias_gelu_forward", x)(arguments)
    return result


def _backward(gradient: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradient, x, bias = (launcher.aligned(tensor) for tensor in (gradient, x, bias))
    x_gradient = torch.empty_like(x)
    arguments = _arguments(x, bias)
    partials = x.new_empty((arguments.num_blocks, x.shape[1]), dtype=torch.float32)
    arguments.set(gradient=gradient, x_gradient=x_gradient, partials=partials)
    launcher.bound("unimo_bias_gelu_backward", x)(arguments)
    return x_gradient, partials.sum(0).to(bias.dtype)


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _derivative(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = bias_gelu_backward(gradient, *ctx.saved_tensors)
    return found


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
bias_gelu_forward = launcher.Operator(
    _OPERATORS,
    "bias_gelu_forward(Tensor x, Tensor bias) -> Tensor",
    _forward,
    lambda x, bias: x.new_empty(x.shape),
    derivative=_derivative,
    save=_save,
)
bias_gelu_backward = launcher.Operator(
    _OPERATORS,
    "bias_gelu_backward(Tensor gradient, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    _backward,
    lambda gradient, x, bias: (x.new_empty(x.shape), bias.new_empty(bias.shape)),
)
