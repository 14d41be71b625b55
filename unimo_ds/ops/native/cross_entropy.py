"""Cross-entropy over the tied vocabulary by the CUDA kernels of `kernels/cross_entropy/` and cuBLAS:
`unimo::cross_entropy_forward` and `unimo::cross_entropy_backward`.

A product writes a chunk's logits in 16 bits, without bias; one kernel reads them once for the losses, another turns them into
slopes (gradients of the logits) in place, and two products take these to the hidden states and the table. If all logits fit in
one chunk, they are kept for the backward pass; otherwise it recomputes each chunk's. No atomics, no host synchronisation;
bit-identical from run to run.

cuBLAS takes its Hopper kernels only if rows are aligned to 16 bytes. So rows of logits have a pitch of a multiple of eight
words, and the table's last rows, up to seven, have small products of their own: the table is never copied.

Letters: N rows, D hidden size, V words, P pitch: V rounded up to a multiple of eight.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from unimo_ds.ops.native import launcher, library

MOST_KEPT = 256 << 20
"""Limit, in bytes, on logits kept from the forward to the backward pass, all in one chunk."""
CHUNK = 128 << 20
"""Limit, in bytes, on a chunk's logits if there are several chunks."""
_SLAB = 2048
_SLOPE_ROWS = 3
_SLOPE_COLUMNS = 1024
_BLOCKS = 132 * 8
"""Of the slopes kernel: as many as are resident on an H100 or H200 (kernels/REPORT.md)."""
_FACTS = 4


class CrossEntropyArguments(launcher.Arguments):
    """`CrossEntropyArguments` of kernels/cross_entropy/cross_entropy.cuh, field by field."""

    _fields_ = (
        *launcher.addresses("logits bias targets parts facts losses is_correct gradients partials"),
        *launcher.integers("num_rows num_words pitch num_slabs num_blocks"),
        ("smoothing", ctypes.c_float),
    )


def refusal(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor) -> str | None:
    """Why the kernels cannot take this head, None if they can."""
    if not hidden_ND.dtype == weight_VD.dtype == bias_V.dtype:
        return f"the hidden states are {hidden_ND.dtype}, the table {weight_VD.dtype}, its bias {bias_V.dtype}"
    return library.refusal(hidden_ND)


def tied_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    targets_N: torch.Tensor,
    smoothing: float,
    tells_correct: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.cross_entropy.tied_cross_entropy`, but is_correct is empty unless `tells_correct`; the loss of a target outside
    the vocabulary is NaN. Callers check `refusal` first."""
    losses_N, is_correct_N, _, _ = cross_entropy_forward(
        hidden_ND, weight_VD, bias_V, targets_N, smoothing, tells_correct
    )
    return losses_N, is_correct_N


def _forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    smoothing: float,
    tells_correct: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight, bias = (launcher.aligned(tensor) for tensor in (hidden, weight, bias))
    targets = targets.contiguous()
    losses, is_correct, facts, kept = _forward_shapes(hidden, weight, bias, targets, smoothing, tells_correct)
    chunks = _chunks(hidden, weight)
    logits = kept if len(kept) else _logits_of_a_chunk(chunks, weight)
    num_slabs = -(-len(weight) // _SLAB)
    parts = losses.new_empty((num_slabs, len(logits), _FACTS))
    run = launcher.bound("unimo_cross_entropy_losses", hidden)
    for rows in chunks:
        part = logits[: len(hidden[rows])]
        _multiply_into(part, hidden[rows], weight)
        arguments = _arguments(part, bias, facts[rows], smoothing)
        arguments.set(num_slabs=num_slabs, parts=parts, targets=targets[rows], losses=losses[rows])
        arguments.set(is_correct=is_correct[rows] if tells_correct else None)
        run(arguments)
    return losses, is_correct, facts, kept


def _forward_shapes(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, smoothing: float, tells: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses; is_correct, empty unless wanted; what the slopes kernel needs of each row; logits, empty unless kept."""
    num_rows, pitch = len(hidden), _pitch(weight)
    is_kept = num_rows * pitch * hidden.element_size() <= MOST_KEPT
    return (
        hidden.new_empty(num_rows, dtype=torch.float32),
        hidden.new_empty(num_rows if tells else 0, dtype=torch.bool),
        hidden.new_empty((num_rows, _FACTS), dtype=torch.float32),
        hidden.new_empty((num_rows if is_kept else 0, pitch)),
    )


def _backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    facts: torch.Tensor,
    kept: torch.Tensor,
    smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """kept: the logits, which become slopes; empty: they are recomputed."""
    hidden, weight, bias, gradient = (launcher.aligned(tensor) for tensor in (hidden, weight, bias, gradient.float()))
    chunks = _chunks(hidden, weight)
    logits = kept if len(kept) else _logits_of_a_chunk(chunks, weight)
    hidden_gradient, bias_gradient = torch.empty_like(hidden), facts.new_zeros(len(weight))
    table_gradient: torch.Tensor | None = None
    for rows in chunks:
        slopes = logits[: len(hidden[rows])]
        if not len(kept):
            _multiply_into(slopes, hidden[rows], weight)
        bias_gradient += _take_slopes(slopes, bias, facts[rows], gradient[rows], smoothing)
        upstream, place = gradient[rows, None], hidden_gradient[rows]
        # Scale by `upstream` on the D side, not V; the scaled hidden states take the memory of their gradient.
        torch.mul(hidden[rows], upstream, out=place)
        if table_gradient is None:
            table_gradient = weight.new_empty((slopes.shape[1], weight.shape[1]))
            _multiply(slopes.t(), place, table_gradient)
        else:
            _multiply(slopes.t(), place, table_gradient, adds=True)
        _multiply_by_table(slopes, weight, place)
        place *= upstream
    if table_gradient is None:
        table_gradient = torch.zeros_like(weight)
    return hidden_gradient, table_gradient[: len(weight)], bias_gradient.to(bias.dtype)


def _backward_shapes(
    gradient: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _take_slopes(
    logits: torch.Tensor, bias: torch.Tensor, facts: torch.Tensor, gradient: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Turns a chunk's logits [n, P] into slopes in place. Returns the gradient of the bias, [V] fp32."""
    slabs = -(-len(bias) // _SLOPE_COLUMNS)
    num_blocks = min(-(-len(logits) // _SLOPE_ROWS), max(1, _BLOCKS // slabs))
    partials = facts.new_empty((num_blocks, logits.shape[1]))
    arguments = _arguments(logits, bias, facts, smoothing)
    arguments.set(num_blocks=num_blocks, partials=partials, gradients=gradient)
    launcher.bound("unimo_cross_entropy_slopes", logits)(arguments)
    return partials[:, : len(bias)].sum(0)


def _arguments(
    logits: torch.Tensor, bias: torch.Tensor, facts: torch.Tensor, smoothing: float
) -> CrossEntropyArguments:
    """What both kernels need of a chunk."""
    return CrossEntropyArguments(
        logits=logits,
        bias=bias,
        facts=facts,
        num_rows=len(logits),
        num_words=len(bias),
        pitch=logits.shape[1],
        smoothing=smoothing,
    )


def _pitch(weight: torch.Tensor) -> int:
    return -(-len(weight) // 8) * 8


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    """Equal slices of rows: one if its logits may be kept, else within `CHUNK`."""
    num_rows, row_bytes = len(hidden), _pitch(weight) * hidden.element_size()
    return equal_slices(num_rows, num_rows if num_rows * row_bytes <= MOST_KEPT else CHUNK // row_bytes)


def equal_slices(num_rows: int, most: int) -> list[slice]:
    """All rows in order, in slices of at most `most` rows (at least one); the last may be shorter."""
    if num_rows == 0:
        return []
    num_slices = -(-num_rows // max(1, most))
    size = -(-num_rows // num_slices)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _logits_of_a_chunk(chunks: list[slice], weight: torch.Tensor) -> torch.Tensor:
    """A buffer for the longest chunk, reused by each."""
    return weight.new_empty((chunks[0].stop if chunks else 0, _pitch(weight)))


def _multiply_into(logits: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """logits[:, :V] = hidden @ weight.T; columns from V on are not written."""
    num_words = len(weight)
    whole = num_words // 8 * 8
    if whole:
        _multiply(hidden, weight[:whole].t(), logits[:, :whole])
    if whole < num_words:
        _multiply(hidden, weight[whole:].t(), logits[:, whole:num_words])


def _multiply_by_table(slopes: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> None:
    """result = slopes[:, :V] @ weight. The last few words come first: rounding their small sum loses less."""
    num_words = len(weight)
    whole = num_words // 8 * 8
    if whole < num_words:
        _multiply(slopes[:, whole:num_words], weight[whole:], result)
    if whole:
        _multiply(slopes[:, :whole], weight[:whole], result, adds=whole < num_words)


def _multiply(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor, *, adds: bool = False) -> None:
    """result = left @ right, or if `adds`, result += left @ right: summed in fp32, rounded once."""
    if not left.is_cuda:
        product = left.float() @ right.float()
        result.copy_(product + result.float() if adds else product)
    elif adds:
        result.addmm_(left, right)
    else:
        torch.mm(left, right, out=result)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, bias, _, ctx.smoothing, _ = inputs
    _, is_correct, facts, ctx.kept = output
    ctx.save_for_backward(hidden, weight, bias, facts)
    ctx.mark_non_differentiable(is_correct, facts, ctx.kept)
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, gradient: torch.Tensor | None, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if gradient is None:
        return (None,) * 6
    # Slopes overwrite the kept logits: another pass through the same graph recomputes them.
    kept, ctx.kept = ctx.kept, ctx.kept.new_empty((0, ctx.kept.shape[1]))
    found = cross_entropy_backward(gradient, *ctx.saved_tensors, kept, ctx.smoothing)
    return *found, None, None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
cross_entropy_forward = launcher.Operator(
    _OPERATORS,
    "cross_entropy_forward(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, float smoothing, bool tells_correct)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
    derivative=_derivative,
    save=_save,
)
cross_entropy_backward = launcher.Operator(
    _OPERATORS,
    "cross_entropy_backward(Tensor gradient, Tensor hidden, Tensor weight, Tensor bias, Tensor facts, Tensor(a!) kept,"
    " float smoothing) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
