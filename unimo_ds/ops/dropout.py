"""Dropout keyed by sequence seed, site, offset and column: the same bits wherever a sequence lies in any stream.

Letters: T stream positions, D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from unimo_ds.ops.native import dropout_norm as native
from unimo_ds.ops.paths import Path, choose
from unimo_ds.utils import seed


def stream_mask(like_TD: torch.Tensor, position_keys_T: torch.Tensor, *, probability: float, site: int) -> torch.Tensor:
    """The 0/1 mask of one dropout site, [T, D] in `like_TD`'s dtype."""
    keys = seed.row_keys(position_keys_T, site)
    return seed.keep_mask(keys, like_TD.shape[-1], probability, dtype=like_TD.dtype)


def dropout_reference(
    x_TD: torch.Tensor, position_keys_T: torch.Tensor, *, probability: float, site: int
) -> torch.Tensor:
    """The definition, differentiated by autograd."""
    return x_TD * stream_mask(x_TD, position_keys_T, probability=probability, site=site) * seed.keep_scale(probability)


def dropout(
    x_TD: torch.Tensor, position_keys_T: torch.Tensor, *, probability: float, site: int, path: str = "auto"
) -> torch.Tensor:
    """`x_TD` with a fraction `probability` of its elements zeroed and the rest scaled up; `x_TD` itself if it is 0.

    x_TD: [T, D] floating. position_keys_T: [T] int32, `Layout.position_keys` or the rows of it that `x_TD` holds.
    site: number of this dropout in the model; no two may share one. path: `native` (the CUDA kernel: fp16 or bf16; nothing is
    stored), `plain` (torch; the mask is stored), or `auto`.
    """
    if probability == 0:
        return x_TD
    return choose("dropout", path, _PATHS, x_TD)(x_TD, position_keys_T, probability, site)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: torch.Tensor, position_keys_T: torch.Tensor, probability: float, site: int
    ) -> torch.Tensor:
        mask_TD = stream_mask(x_TD, position_keys_T, probability=probability, site=site)
        ctx.save_for_backward(mask_TD)
        ctx.scale = seed.keep_scale(probability)
        return torch.mul(x_TD, mask_TD).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (mask_TD,) = ctx.saved_tensors
        return torch.mul(gradients[0], mask_TD).mul_(ctx.scale), None, None, None


_PATHS: dict[str, Path[Callable[..., torch.Tensor]]] = {
    "native": Path(native.dropout, native.refusal_of_dropout),
    "plain": Path(_Dropout.apply),
}
