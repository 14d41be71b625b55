"""Cosines of listed pairs of vectors, and log-sum-exps of ragged segments, by the kernels of `kernels/contrastive/pairs.cuh`.

Nothing of size [Q, D] is made: a warp reads the two vectors of a pair where they lie. Gradients are summed vector by vector in
listed order (a stable sort finds the order, on the device), so two runs give the same bits.

Letters: Q scores, N and M vectors of the two sides, D vector size, P segments.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.nn import functional

from unimo_ds.ops.native import launcher, library

CHUNK = 8
_WIDE = 2


class PairArguments(ctypes.Structure):
    """`PairArguments` of kernels/contrastive/pairs.cuh, field by field."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "left",
                "right",
                "left_rows",
                "right_rows",
                "scores",
                "order",
                "starts",
                "score_gradients",
                "gradient",
            )
        ),
        *((name, ctypes.c_int) for name in ("num_scores", "num_rows", "size")),
    )


class SegmentArguments(ctypes.Structure):
    """`SegmentArguments` of kernels/contrastive/pairs.cuh, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "order", "starts", "results")),
        ("num_segments", ctypes.c_int),
    )


def pair_scores(
    left_ND: torch.Tensor, right_MD: torch.Tensor, left_rows_Q: torch.Tensor, right_rows_Q: torch.Tensor
) -> torch.Tensor:
    """[Q] fp32 products left[left_rows] . right[right_rows], differentiable. fp16, bf16, or fp32 rounded to fp16."""
    scores: torch.Tensor = torch.ops.unimo.contrastive_pair_scores(left_ND, right_MD, left_rows_Q, right_rows_Q)
    return scores


def segment_log_sum_exp(values_Q: torch.Tensor, segment_Q: torch.Tensor, num_segments: int) -> torch.Tensor:
    """[num_segments] fp32 log of the sum of exp of each segment's values; -inf for an empty one. Differentiable."""
    logs: torch.Tensor = torch.ops.unimo.contrastive_segments(values_Q, segment_Q, num_segments)
    return logs


def _narrow(vectors: torch.Tensor) -> torch.Tensor:
    narrow = vectors.half() if vectors.dtype == torch.float32 else vectors
    short = -vectors.shape[1] % CHUNK
    return (functional.pad(narrow, (0, short)) if short else narrow).contiguous()


def _lists(index: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([Q] places sorted by index, in order among equals; [count + 1] where each index's places begin)."""
    ordered, order = index.int().sort(stable=True)  # half the passes of a radix sort of int64
    return order, torch.searchsorted(ordered, torch.arange(count + 1, dtype=torch.int32, device=index.device))


def _scores(left: torch.Tensor, right: torch.Tensor, left_rows: torch.Tensor, right_rows: torch.Tensor) -> torch.Tensor:
    left, right = _narrow(left), _narrow(right)
    left_rows, right_rows = left_rows.contiguous(), right_rows.contiguous()
    scores = left.new_empty((len(left_rows),), dtype=torch.float32)
    launcher.bound("unimo_contrastive_pair_scores", left)(
        PairArguments(
            left=left.data_ptr(),
            right=right.data_ptr(),
            left_rows=left_rows.data_ptr(),
            right_rows=right_rows.data_ptr(),
            scores=scores.data_ptr(),
            num_scores=len(scores),
            size=left.shape[1],
        )
    )
    return scores


def _score_shapes(left: torch.Tensor, _: torch.Tensor, left_rows: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
    return left.new_empty((left_rows.shape[0],), dtype=torch.float32)


def _gradient(
    score_gradients: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    left_rows: torch.Tensor,
    right_rows: torch.Tensor,
) -> torch.Tensor:
    """Of the left vectors: [N, D] in their dtype."""
    order, starts = _lists(left_rows, len(left))
    narrow, right_rows, score_gradients = _narrow(right), right_rows.contiguous(), score_gradients.contiguous()
    wide = left.dtype == torch.float32
    gradient = left.new_empty((len(left), narrow.shape[1]))
    format_number = library.FORMATS[narrow.dtype] + (_WIDE if wide else 0)
    launcher.bound("unimo_contrastive_pair_gradients", narrow, format_number)(
        PairArguments(
            right=narrow.data_ptr(),
            right_rows=right_rows.data_ptr(),
            order=order.data_ptr(),
            starts=starts.data_ptr(),
            score_gradients=score_gradients.data_ptr(),
            gradient=gradient.data_ptr(),
            num_scores=len(right_rows),
            num_rows=len(left),
            size=narrow.shape[1],
        )
    )
    return gradient[:, : left.shape[1]].contiguous()


def _gradient_shapes(_: torch.Tensor, left: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
    return left.new_empty(left.shape)


def _save_pairs(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pair_derivative(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    left, right, left_rows, right_rows = ctx.saved_tensors
    back = torch.ops.unimo.contrastive_pair_gradient
    to_left = back(gradient, left, right, left_rows, right_rows) if ctx.needs_input_grad[0] else None
    to_right = back(gradient, right, left, right_rows, left_rows) if ctx.needs_input_grad[1] else None
    return to_left, to_right, None, None


def _segments(values: torch.Tensor, segment: torch.Tensor, num_segments: int) -> torch.Tensor:
    order, starts = _lists(segment, num_segments)
    values = values.float().contiguous()
    results = values.new_empty((num_segments,))
    launcher.bound("unimo_contrastive_segments", values, 0)(
        SegmentArguments(
            values=values.data_ptr(),
            order=order.data_ptr(),
            starts=starts.data_ptr(),
            results=results.data_ptr(),
            num_segments=num_segments,
        )
    )
    return results


def _segment_shapes(values: torch.Tensor, _: torch.Tensor, num_segments: int) -> torch.Tensor:
    return values.new_empty((num_segments,), dtype=torch.float32)


def _save_segments(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    values, segment, _ = inputs
    ctx.save_for_backward(values, segment, output)


def _segment_derivative(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    values, segment, logs = ctx.saved_tensors
    return torch.exp(values - logs[segment]) * gradient[segment], None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
launcher.define(
    _OPERATORS,
    "contrastive_pair_scores(Tensor left, Tensor right, Tensor left_rows, Tensor right_rows) -> Tensor",
    _scores,
    _score_shapes,
)
launcher.define(
    _OPERATORS,
    "contrastive_pair_gradient(Tensor score_gradients, Tensor left, Tensor right, Tensor left_rows, Tensor right_rows)"
    " -> Tensor",
    _gradient,
    _gradient_shapes,
)
launcher.define(
    _OPERATORS,
    "contrastive_segments(Tensor values, Tensor segment, int num_segments) -> Tensor",
    _segments,
    _segment_shapes,
)
launcher.differentiate(_OPERATORS, "contrastive_pair_scores", _pair_derivative, _save_pairs)
launcher.differentiate(_OPERATORS, "contrastive_segments", _segment_derivative, _save_segments)
