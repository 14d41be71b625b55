"""Cosines of listed pairs of vectors, and log-sum-exps of ragged segments, by the kernels of `kernels/contrastive/pairs.cuh`.

Nothing of size [Q, D] is stored: a warp reads the two vectors of a pair in place. Gradients are summed vector by vector in
listed order (`ops.grouping`), so two runs give the same bits.

Letters: Q scores, N and M vectors of the two sides, D vector size, P segments, K values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from unimo_ds.ops.grouping import Groups
from unimo_ds.ops.native import launcher, library

CHUNK = 8
_WIDE = 2


class PairArguments(launcher.Arguments):
    """`PairArguments` of kernels/contrastive/pairs.cuh, field by field."""

    _fields_ = (
        *launcher.addresses("left right left_rows right_rows scores order starts score_gradients gradient"),
        *launcher.integers("num_scores num_rows size num_listed"),
    )


class SegmentArguments(launcher.Arguments):
    """`SegmentArguments` of kernels/contrastive/pairs.cuh, field by field."""

    _fields_ = (
        *launcher.addresses("values order starts index results gradients value_gradients"),
        *launcher.integers("num_segments num_values"),
    )


def pair_scores(left_ND: torch.Tensor, right_MD: torch.Tensor, left: Groups, right: Groups) -> torch.Tensor:
    """[Q] fp32 products left[left.group_of] . right[right.group_of], differentiable. fp16, bf16, or fp32 rounded to fp16.

    left, right: the scores by vector; vectors after the last group have none.
    """
    scores: torch.Tensor = contrastive_pair_scores(left_ND, right_MD, *left, *right)
    return scores


def segment_log_sum_exp(values_Q: torch.Tensor, segments: Groups) -> torch.Tensor:
    """[P] fp32 log of the sum of exp of each segment's values; -inf for an empty one. Differentiable."""
    logs: torch.Tensor = contrastive_segments(values_Q, *segments, segments.num_groups)
    return logs


def log_sum_exp(values_KP: torch.Tensor) -> torch.Tensor:
    """[P] fp32 log of the sum of exp of each column; the gradient of a -inf is 0. Differentiable."""
    nothing = values_KP.new_empty(0, dtype=torch.int64)
    logs: torch.Tensor = contrastive_segments(values_KP.flatten(), nothing, nothing, nothing, values_KP.shape[1])
    return logs


def _narrow(vectors: torch.Tensor) -> torch.Tensor:
    narrow = vectors.half() if vectors.dtype == torch.float32 else vectors
    short = -vectors.shape[1] % CHUNK
    return (functional.pad(narrow, (0, short)) if short else narrow).contiguous()


def _scores(
    left: torch.Tensor,
    right: torch.Tensor,
    left_rows: torch.Tensor,
    _: Any,
    __: Any,
    right_rows: torch.Tensor,
    *___: Any,
) -> torch.Tensor:
    left, right = _narrow(left), _narrow(right)
    left_rows, right_rows = left_rows.contiguous(), right_rows.contiguous()
    scores = left.new_empty((len(left_rows),), dtype=torch.float32)
    launcher.bound("unimo_contrastive_pair_scores", left)(
        PairArguments(
            left=left,
            right=right,
            left_rows=left_rows,
            right_rows=right_rows,
            scores=scores,
            num_scores=len(scores),
            size=left.shape[1],
        )
    )
    return scores


def _score_shapes(left: torch.Tensor, _: torch.Tensor, left_rows: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
    return left.new_empty((left_rows.shape[0],), dtype=torch.float32)


def _gradient(
    score_gradients: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    order: torch.Tensor,
    starts: torch.Tensor,
    right_rows: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the left vectors, [N, D] in their dtype."""
    order, starts = order.contiguous(), starts.contiguous()
    narrow, right_rows, score_gradients = _narrow(right), right_rows.contiguous(), score_gradients.contiguous()
    wide = left.dtype == torch.float32
    gradient = left.new_empty((len(left), narrow.shape[1]))
    format_number = library.FORMATS[narrow.dtype] + (_WIDE if wide else 0)
    launcher.bound("unimo_contrastive_pair_gradients", narrow, format_number)(
        PairArguments(
            right=narrow,
            right_rows=right_rows,
            order=order,
            starts=starts,
            score_gradients=score_gradients,
            gradient=gradient,
            num_scores=len(right_rows),
            num_rows=len(left),
            size=narrow.shape[1],
            num_listed=len(starts) - 1,
        )
    )
    return gradient[:, : left.shape[1]].contiguous()


def _gradient_shapes(_: torch.Tensor, left: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
    return left.new_empty(left.shape)


def _save_pairs(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pair_derivative(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    left, right, left_rows, left_order, left_starts, right_rows, right_order, right_starts = ctx.saved_tensors
    back = contrastive_pair_gradient
    to_left = back(gradient, left, right, left_order, left_starts, right_rows) if ctx.needs_input_grad[0] else None
    to_right = back(gradient, right, left, right_order, right_starts, left_rows) if ctx.needs_input_grad[1] else None
    return to_left, to_right, *[None] * 6


def _segment_arguments(
    values: torch.Tensor, index: torch.Tensor, order: torch.Tensor, starts: torch.Tensor, results: torch.Tensor
) -> SegmentArguments:
    arguments = SegmentArguments(values=values, results=results, num_segments=len(results), num_values=len(values))
    if len(starts):
        arguments.set(index=index, order=order, starts=starts)
    return arguments


def _segments(
    values: torch.Tensor, index: torch.Tensor, order: torch.Tensor, starts: torch.Tensor, num_segments: int
) -> torch.Tensor:
    """Without lists, value i belongs to segment i % num_segments."""
    values, order, starts = values.float().contiguous(), order.contiguous(), starts.contiguous()
    results = values.new_empty((num_segments,))
    arguments = _segment_arguments(values, index, order, starts, results)
    launcher.bound("unimo_contrastive_segments", values, 0)(arguments)
    return results


def _segment_shapes(values: torch.Tensor, _: Any, __: Any, ___: Any, num_segments: int) -> torch.Tensor:
    return values.new_empty((num_segments,), dtype=torch.float32)


def _segment_gradient(
    gradient: torch.Tensor,
    logs: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    order: torch.Tensor,
    starts: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the values, [Q] in their dtype."""
    gradient, index, wide = gradient.float().contiguous(), index.contiguous(), values.float().contiguous()
    value_gradients = torch.empty_like(wide)
    arguments = _segment_arguments(wide, index, order, starts, logs)
    arguments.set(gradients=gradient, value_gradients=value_gradients)
    launcher.bound("unimo_contrastive_segment_gradients", wide, 0)(arguments)
    return value_gradients.to(values.dtype)


def _save_segments(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:-1])


def _segment_derivative(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return contrastive_segment_gradient(gradient, *ctx.saved_tensors), *[None] * 4


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
contrastive_pair_scores = launcher.Operator(
    _OPERATORS,
    "contrastive_pair_scores(Tensor left, Tensor right, Tensor left_rows, Tensor left_order, Tensor left_starts,"
    " Tensor right_rows, Tensor right_order, Tensor right_starts) -> Tensor",
    _scores,
    _score_shapes,
    derivative=_pair_derivative,
    save=_save_pairs,
)
contrastive_pair_gradient = launcher.Operator(
    _OPERATORS,
    "contrastive_pair_gradient(Tensor score_gradients, Tensor left, Tensor right, Tensor order, Tensor starts,"
    " Tensor right_rows) -> Tensor",
    _gradient,
    _gradient_shapes,
)
contrastive_segments = launcher.Operator(
    _OPERATORS,
    "contrastive_segments(Tensor values, Tensor index, Tensor order, Tensor starts, int num_segments) -> Tensor",
    _segments,
    _segment_shapes,
    derivative=_segment_derivative,
    save=_save_segments,
)
contrastive_segment_gradient = launcher.Operator(
    _OPERATORS,
    "contrastive_segment_gradient(Tensor gradient, Tensor logs, Tensor values, Tensor index, Tensor order, Tensor starts)"
    " -> Tensor",
    _segment_gradient,
    lambda gradient, logs, values, *_: values.new_empty(values.shape),
)
