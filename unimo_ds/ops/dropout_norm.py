"""Dropout, residual and layer norm in one op: `layer_norm(residual + dropout(x))`, the end of every post-norm sub-layer.

Letters: T stream positions, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from unimo_ds.ops.dropout import dropout_reference, stream_mask
from unimo_ds.ops.native import dropout_norm as native
from unimo_ds.ops.paths import Path, choose
from unimo_ds.utils import seed
from unimo_ds.utils.differentiable_once import differentiable_once


def dropout_add_layer_norm(
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor,
    position_keys_T: torch.Tensor,
    *,
    probability: float,
    site: int,
    epsilon: float,
    path: str = "auto",
) -> torch.Tensor:
    """`layer_norm(residual + dropout(x))` over the last dimension, [T, D].

    x_TD, residual_TD: [T, D] floating. position_keys_T: [T] int32, `Layout.position_keys` or the rows of it that `x_TD` holds.
    site: number of this dropout in the model; no two may share one. path: `native` (the CUDA kernels: fp16 or bf16; only the
    sum is stored), `fused` (torch, one autograd node; the sum and the mask are stored), `reference`, or `auto`.
    """
    if path == "auto" and not probability and not torch.is_grad_enabled() and x_TD.device.type == "cpu":
        # No dropout, no backward: choosing a path and an autograd node would take a small model 10 % of its decoding time.
        return functional.layer_norm(residual_TD + x_TD, weight_D.shape, weight_D, bias_D, epsilon)
    run = choose("dropout_add_layer_norm", path, _PATHS, x_TD, weight_D)
    return run(x_TD, residual_TD, weight_D, bias_D, position_keys_T, probability, site, epsilon)


def _reference(
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor,
    position_keys_T: torch.Tensor,
    probability: float,
    site: int,
    epsilon: float,
) -> torch.Tensor:
    if probability:
        x_TD = dropout_reference(x_TD, position_keys_T, probability=probability, site=site)
    return functional.layer_norm(residual_TD + x_TD, weight_D.shape, weight_D, bias_D, epsilon)


class _DropoutAddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        residual_TD: torch.Tensor,
        weight_D: torch.Tensor,
        bias_D: torch.Tensor,
        position_keys_T: torch.Tensor,
        probability: float,
        site: int,
        epsilon: float,
    ) -> torch.Tensor:
        ctx.scale = seed.keep_scale(probability)
        mask_TD = None
        if probability:
            mask_TD = stream_mask(x_TD, position_keys_T, probability=probability, site=site)
            sum_TD = torch.addcmul(residual_TD, x_TD, mask_TD, value=ctx.scale)
        else:
            sum_TD = residual_TD + x_TD
        result_TD, mean, inverse_deviation = torch.native_layer_norm(
            sum_TD, list(weight_D.shape), weight_D, bias_D, epsilon
        )
        ctx.save_for_backward(sum_TD, mean, inverse_deviation, weight_D, bias_D, mask_TD)
        return result_TD

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sum_TD, mean, inverse_deviation, weight_D, bias_D, mask_TD = ctx.saved_tensors
        residual_grad, weight_grad, bias_grad = torch.ops.aten.native_layer_norm_backward(
            gradients[0],
            sum_TD,
            list(weight_D.shape),
            mean,
            inverse_deviation,
            weight_D,
            bias_D,
            [True, ctx.needs_input_grad[2], ctx.needs_input_grad[3]],
        )
        x_grad = residual_grad if mask_TD is None else torch.mul(residual_grad, mask_TD).mul_(ctx.scale)
        return x_grad, residual_grad, weight_grad, bias_grad, None, None, None, None


_PATHS: dict[str, Path[Callable[..., torch.Tensor]]] = {
    "native": Path(native.dropout_add_layer_norm, native.refusal),
    "fused": Path(_DropoutAddLayerNorm.apply),
    "reference": Path(_reference),
}
