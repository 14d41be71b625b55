"""Cross-entropy over the tied vocabulary without materialising all logits: rows in chunks, by kernels on a GPU.

Letters: N rows (positions that predict a token), D hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from unimo_ds.ops.linear import linear, widens
from unimo_ds.ops.native import cross_entropy as native
from unimo_ds.ops.own_precision import own_precision
from unimo_ds.ops.paths import Path, choose
from unimo_ds.utils.differentiable_once import differentiable_once

_CHUNK_LOGITS = 1 << 23
"""Logits per chunk: 32 MB in fp32 on a CPU, 166 rows of RoBERTa's vocabulary. Four times as many are 1 to 20 % faster, but
several buffers of a chunk, held at a step's memory peak, are four times as large."""
_CHUNK_LOGITS_GPU = 1 << 27
_MULTIPLE_OF_ROWS = {"cuda": 8}
"""By device type: the table's rows are padded to a multiple of this."""


def tied_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    smoothing: float = 0.0,
    tells_correct: bool = True,
    path: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cross-entropy of `hidden @ weight.T + bias` against `targets`, row by row.

    hidden_ND, weight_VD, bias_V: floating, of one dtype. targets_N: int64. path: `native` (the CUDA kernels: fp16 or
    bf16), `chunked`, `reference`, or `auto`.
    smoothing: fraction of the target's probability that is spread evenly over the vocabulary.
    Under autocast hidden states, weight and bias are cast to its dtype, as for a linear layer.
    Returns losses [N] fp32 (softmax and logarithm in fp32) and is_correct [N] bool (the target has the highest logit), None
    unless `tells_correct`: on a CPU the argmax takes as long as the softmax.
    """
    kind = hidden_ND.device.type
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden_ND, weight_VD, bias_V = hidden_ND.to(dtype), weight_VD.to(dtype), bias_V.to(dtype)
    run = choose("tied_cross_entropy", path, _PATHS, hidden_ND, weight_VD, bias_V)
    losses_N, is_correct_N = run(hidden_ND, weight_VD, bias_V, targets_N, smoothing, tells_correct)
    return losses_N, is_correct_N if tells_correct else None


def cross_entropy_reference(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_N: torch.Tensor,
    smoothing: float = 0.0,
    _: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, with all logits at once; always returns is_correct."""
    logits_NV = linear(hidden_ND, weight_VD, bias_V)
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    losses_N = functional.cross_entropy(logits_NV, targets_N, reduction="none", label_smoothing=smoothing)
    return losses_N, logits_NV.detach().argmax(-1) == targets_N


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Saves one logarithm per row; backward recomputes each chunk's logits: one more product, no memory. If there is
    one chunk, its logits are saved."""

    @staticmethod
    @own_precision
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor,
        targets_N: torch.Tensor,
        smoothing: float,
        tells_correct: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = _table(weight_VD, bias_V)
        wide = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        target_logs_N = hidden_ND.new_empty(len(targets_N), dtype=wide)
        losses_N = torch.empty_like(target_logs_N)
        is_correct_N = torch.empty_like(targets_N, dtype=torch.bool)
        chunks = _chunks(hidden_ND, weight_VD)
        for rows in chunks:
            logits = functional.linear(_widened(hidden_ND[rows]), weight, bias)
            if tells_correct:
                is_correct_N[rows] = logits.argmax(-1) == targets_N[rows]
            logs = logits.log_softmax(-1, dtype=wide)
            target_logs_N[rows] = wanted = logs.gather(1, targets_N[rows, None]).squeeze(1)
            if smoothing:
                wanted = (1 - smoothing) * wanted + smoothing * logs[:, : len(bias_V)].mean(-1)
            losses_N[rows] = -wanted
        kept = [logits] if len(chunks) == 1 else []
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, target_logs_N, *kept)
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(is_correct_N)
        return losses_N, is_correct_N

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, target_logs_N, *kept = ctx.saved_tensors
        weight, bias = _table(weight_VD, bias_V)
        num_words = len(bias_V)
        hidden_gradient = torch.empty_like(hidden_ND)
        # The first chunk's product is written, not added to zeros: saves a pass over the table.
        weight_gradient = torch.empty_like(weight) if len(hidden_ND) else torch.zeros_like(weight)
        bias_gradient = torch.zeros_like(bias)
        for rows in _chunks(hidden_ND, weight_VD):
            hidden, upstream = _widened(hidden_ND[rows]), gradients[0][rows, None]
            slopes = (kept[0] if kept else functional.linear(hidden, weight, bias)).softmax(-1)
            if ctx.smoothing:
                slopes -= ctx.smoothing / num_words
            # The target's is p - 1, which cancels in low precision if p is almost 1.
            of_targets = torch.expm1(target_logs_N[rows, None]) + ctx.smoothing * (1 - 1 / num_words)
            slopes.scatter_(1, targets_N[rows, None], of_targets.to(slopes.dtype))
            # Scale by `upstream` on the D side, not V.
            hidden_gradient[rows] = ((slopes @ weight) * upstream).to(hidden_gradient.dtype)
            weighed = (hidden * upstream).to(weight.dtype)
            weight_gradient.addmm_(slopes.t(), weighed, beta=1 if rows.start else 0)
            bias_gradient += slopes.t() @ upstream.squeeze(1).to(slopes.dtype)
        weight_gradient, bias_gradient = weight_gradient[:num_words], bias_gradient[:num_words]
        return hidden_gradient, weight_gradient.to(weight_VD.dtype), bias_gradient.to(bias_V.dtype), None, None, None


def _table(weight_VD: torch.Tensor, bias_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias for the products: widened if needed, and on GPUs padded with rows that get the probability 0.

    With RoBERTa's 50,265 rows, logit rows are not aligned, and products take kernels for an earlier generation of GPUs:
    726 microseconds each on an H200, where a copy of the table takes some 40.
    """
    missing = -len(weight_VD) % _MULTIPLE_OF_ROWS.get(weight_VD.device.type, 1)
    weight, bias = _widened(weight_VD), _widened(bias_V)
    if missing:
        weight, bias = functional.pad(weight, (0, 0, 0, missing)), functional.pad(bias, (0, missing), value=-torch.inf)
    return weight, bias


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if widens(tensor) else tensor


def _chunks(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> list[slice]:
    """Equal slices of rows whose logits stay within the limit."""
    limit = _CHUNK_LOGITS if hidden_ND.device.type == "cpu" else _CHUNK_LOGITS_GPU
    return native.equal_slices(len(hidden_ND), limit // len(weight_VD))


_PATHS: dict[str, Path[Callable[..., Any]]] = {
    "native": Path(native.tied_cross_entropy, native.refusal),
    "chunked": Path(_ChunkedCrossEntropy.apply),
    "reference": Path(cross_entropy_reference),
}
