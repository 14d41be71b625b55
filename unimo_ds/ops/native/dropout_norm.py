"""Dropout, residual and layer norm by the CUDA kernels of `kernels/dropout_norm/`: `unimo::dropout_norm_forward` and
`unimo::dropout_norm_backward`; and only dropout, `unimo::dropout`. Each pass recomputes the mask from the keys; bit-identical
from run to run.

Letters: T rows, D columns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from unimo_ds.ops.native import launcher, library

LARGEST_SIZE = 1024
_WARPS = 4
_MULTIPROCESSORS = 132
_BLOCKS_OF_ONE = (8, 5, 3, 2)
"""Of the backward kernel for up to 256, 512, 768 and 1,024 columns: resident blocks per multiprocessor, by its registers
(kernels/REPORT.md), so that an H100 or H200 runs all blocks in one wave. Each block writes a row of partial sums."""


class DropoutNormArguments(launcher.Arguments):
    """`DropoutNormArguments` of kernels/dropout_norm/dropout_norm.cuh, field by field."""

    _fields_ = (
        *launcher.addresses("x residual weight bias position_keys sum result means inverse_deviations"),
        *launcher.addresses("gradient x_gradient residual_gradient partials"),
        *launcher.integers("num_rows num_columns num_blocks dropout_threshold"),
        ("site_key", ctypes.c_uint),
        ("keep_scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
    )


def refusal_of_dropout(x_TD: torch.Tensor) -> str | None:
    """Why the dropout-only kernel cannot take this input, None if it can."""
    if x_TD.shape[-1] % 8:
        return f"the kernel is for a multiple of 8 columns, not {x_TD.shape[-1]}"
    return library.refusal(x_TD)


def refusal(x_TD: torch.Tensor, weight_D: torch.Tensor) -> str | None:
    """Why the kernels cannot take this input, None if they can."""
    size = x_TD.shape[-1]
    if size % 8 or size > LARGEST_SIZE:
        return f"the kernel is for a multiple of 8 columns up to {LARGEST_SIZE}, not {size}"
    if weight_D.dtype != x_TD.dtype:
        return f"the norm's weight is {weight_D.dtype}, its input {x_TD.dtype}"
    return library.refusal(x_TD)


def dropout_add_layer_norm(*arguments: Any) -> torch.Tensor:
    """`ops.dropout_norm.dropout_add_layer_norm`, with its arguments in the same order. Callers check `refusal` first."""
    result: torch.Tensor = dropout_norm_forward(*arguments)[0]
    return result


def _arguments(rows: torch.Tensor, position_keys: torch.Tensor, probability: float, site: int) -> DropoutNormArguments:
    num_rows, num_columns = rows.shape
    return DropoutNormArguments(
        position_keys=position_keys,
        num_rows=num_rows,
        num_columns=num_columns,
        **launcher.dropout_fields(probability, site),
    )


def _dropout(x: torch.Tensor, position_keys: torch.Tensor, probability: float, site: int) -> torch.Tensor:
    x, position_keys = launcher.aligned(x), position_keys.contiguous()
    result = torch.empty_like(x)
    arguments = _arguments(x, position_keys, probability, site)
    arguments.set(x=x, result=result)
    launcher.bound("unimo_dropout", x)(arguments)
    return result


def _save_dropout(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, position_keys, ctx.probability, ctx.site = inputs
    ctx.save_for_backward(position_keys)


def _dropout_derivative(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return dropout(gradient, *ctx.saved_tensors, ctx.probability, ctx.site), None, None, None


def _forward(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    position_keys: torch.Tensor,
    probability: float,
    site: int,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, residual, weight, bias = (launcher.aligned(tensor) for tensor in (x, residual, weight, bias))
    position_keys = position_keys.contiguous()
    result, total, means, inverse_deviations = _forward_shapes(x)
    arguments = _arguments(x, position_keys, probability, site)
    arguments.set(x=x, residual=residual, weight=weight, bias=bias, epsilon=epsilon)
    arguments.set(result=result, sum=total, means=means, inverse_deviations=inverse_deviations)
    launcher.bound("unimo_dropout_norm_forward", x)(arguments)
    return result, total, means, inverse_deviations


def _forward_shapes(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Result, rounded sum, mean and inverse deviation of each row."""
    rows = x.new_empty(len(x), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), rows, torch.empty_like(rows)


def _backward(
    gradient: torch.Tensor,
    total: torch.Tensor,
    means: torch.Tensor,
    inverse_deviations: torch.Tensor,
    weight: torch.Tensor,
    position_keys: torch.Tensor,
    probability: float,
    site: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradient, weight, position_keys = launcher.aligned(gradient), launcher.aligned(weight), position_keys.contiguous()
    x_gradient, residual_gradient, _ = _backward_shapes(gradient)
    most_blocks = _MULTIPROCESSORS * _BLOCKS_OF_ONE[(gradient.shape[1] - 1) // 256]
    num_blocks = min(-(-len(gradient) // _WARPS), most_blocks)
    partials = gradient.new_empty((num_blocks, 2, gradient.shape[1]), dtype=torch.float32)
    arguments = _arguments(gradient, position_keys, probability, site)
    arguments.set(gradient=gradient, sum=total, means=means, inverse_deviations=inverse_deviations, weight=weight)
    arguments.set(x_gradient=x_gradient, residual_gradient=residual_gradient, partials=partials, num_blocks=num_blocks)
    launcher.bound("unimo_dropout_norm_backward", gradient)(arguments)
    if not probability:
        x_gradient = residual_gradient.clone()  # an operator's results may not share memory
    return x_gradient, residual_gradient, partials.sum(0).to(weight.dtype)


def _backward_shapes(gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x and the residual, and of weight and bias as [2, D]."""
    return (
        gradient.new_empty(gradient.shape),
        gradient.new_empty(gradient.shape),
        gradient.new_empty((2, gradient.shape[1])),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, _, weight, _, position_keys, ctx.probability, ctx.site, _ = inputs
    ctx.save_for_backward(*output[1:], weight, position_keys)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, gradient: torch.Tensor | None, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    x_gradient, residual_gradient, of_weights = dropout_norm_backward(
        gradient, *ctx.saved_tensors, ctx.probability, ctx.site
    )
    return x_gradient, residual_gradient, *of_weights.unbind(), None, None, None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
dropout = launcher.Operator(
    _OPERATORS,
    "dropout(Tensor x, Tensor position_keys, float probability, int site) -> Tensor",
    _dropout,
    lambda x, *_: x.new_empty(x.shape),
    derivative=_dropout_derivative,
    save=_save_dropout,
    is_linear=True,
)
dropout_norm_forward = launcher.Operator(
    _OPERATORS,
    "dropout_norm_forward(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor position_keys, float probability,"
    " int site, float epsilon) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
    derivative=_derivative,
    save=_save,
)
dropout_norm_backward = launcher.Operator(
    _OPERATORS,
    "dropout_norm_backward(Tensor gradient, Tensor total, Tensor means, Tensor inverse_deviations, Tensor weight,"
    " Tensor position_keys, float probability, int site) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
