"""Packed attention by the CUDA kernels of `kernels/attention/`, as the torch operators `unimo::attention_forward` and
`unimo::attention_backward`: with shapes for tracing and a derivative; no host synchronisation, bit-identical from run to run.

Letters: T stream positions, H heads, D head size (64), S sequences, B blocks (64 rows of one sequence each, or as many as the
library's kernels take).
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from unimo_ds.ops.grouping import group
from unimo_ds.ops.layout import Layout
from unimo_ds.ops.native import launcher, library

HEAD_SIZE = 64
WINDOW = 128
"""Neighbouring blocks in a table that are sorted by work, most first."""
WHOLE_BACKWARD = True
"""Whether sequences of up to 128 positions take the whole-sequence backward kernel, which computes scores once (sm_90, no
shared prefixes); longer ones of the same stream take the kernels for any length."""
_NOT_WHOLE, _SHORT_WHOLE, _ALL_WHOLE = range(3)


class _Arguments(launcher.Arguments):
    """`AttentionCall` of kernels/attention/attention.cu and `AttentionArguments` of its geometry.cuh, field by field."""

    _fields_ = (
        *launcher.addresses(
            "query_key_value output log_sums output_gradient input_gradient deltas row_keys tiles position_keys"
        ),
        *launcher.integers("num_tiles num_positions num_heads dropout_threshold"),
        ("site_key", ctypes.c_uint),
        ("keep_scale", ctypes.c_float),
        ("scale", ctypes.c_float),
        *launcher.integers("whole whole_length"),
        *launcher.addresses("sharing key_tiles sequences"),
        *launcher.integers("num_sequences"),
    )


def refusal(query_key_value_T3HD: torch.Tensor) -> str | None:
    """Why the kernels cannot take this input, None if they can."""
    head_size = query_key_value_T3HD.shape[-1]
    if head_size != HEAD_SIZE:
        return f"the kernel is for heads of {HEAD_SIZE}, not {head_size}"
    return library.refusal(query_key_value_T3HD)


def attention(
    query_key_value_T3HD: torch.Tensor, layout: Layout, *, probability: float = 0.0, site: int = 0
) -> torch.Tensor:
    """`packed_attention` by the kernels, [T, H, D]. Callers check `refusal` first."""
    tables = tables_of(layout)
    keys = layout.position_keys.contiguous() if probability else tables.tiles.new_empty(0)
    whole = _whole(query_key_value_T3HD, layout)
    output, _ = attention_forward(query_key_value_T3HD, *tables, keys, probability, site, whole)
    return output  # type: ignore[no-any-return]


def _whole(query_key_value: torch.Tensor, layout: Layout) -> int:
    """Which sequences of the layout take the whole-sequence backward kernel: one of the three numbers above."""
    if not WHOLE_BACKWARD or layout.prefix_of is not None:
        return _NOT_WHOLE
    if layout.longest <= library.number_of("unimo_attention_whole_length", layout.device):
        return _ALL_WHOLE
    return _SHORT_WHOLE


class Tables(NamedTuple):
    """Sequences and blocks for the kernels. c = 4 columns, int32: start of the sequence in the stream, its length, its
    prefix length, the block's first row; 4 more if prefixes are shared (see `_sharing`)."""

    tiles: torch.Tensor
    """[2, B, c] blocks of queries, then blocks of keys, each in the best launch order; unused ones, of length 0, last."""
    sequences: torch.Tensor
    """[S + 1, c] the sequences, and one of length 0; the fourth column is the index of a sequence's first block."""
    sharing: torch.Tensor
    """[T] if prefixes are shared: positions of the sequences that share one, by its owner; else empty."""


def tables_of(layout: Layout) -> Tables:
    """`make_tables` for the layout's library; computed on the device, once per layout."""
    if "native_attention" not in layout.tables:
        rows = library.number_of("unimo_attention_block_rows", layout.device)
        layout.tables["native_attention"] = make_tables(layout, rows=rows)
    tables: Tables = layout.tables["native_attention"]
    return tables


def make_tables(layout: Layout, *, rows: int) -> Tables:
    """The tables for blocks of `rows` rows.

    Sizes follow from T and S, so that nothing is read back: with R rows per block, B = floor((T + (R - 1) S) / R), the most
    that S sequences of T positions in total can need.

    Blocks are in the order of their sequences, so that those that read the same keys run together; but among WINDOW neighbours,
    counted from the end, those with the most work come first: otherwise, if masks or lengths make blocks unequal, the last ones
    launched would be the longest, and most of the GPU would wait for them.
    """
    starts = layout.sequence_starts
    lengths = starts.diff(append=starts[-1:])  # after the last sequence comes one of length 0
    counts = (lengths + (rows - 1)) // rows
    ends = counts.cumsum(0, dtype=torch.int32)
    columns, sharing = [starts, lengths, functional.pad(layout.prefix_lengths, (0, 1)), ends - counts], starts[:0]
    if layout.prefix_of is not None:
        others, sharing = _sharing(layout, layout.prefix_of)
        columns += [functional.pad(column.to(torch.int32), (0, 1)) for column in others]
    sequences = torch.stack(columns, 1)
    num_sequences = layout.num_sequences
    num_blocks = (layout.num_positions + (rows - 1) * num_sequences) // rows
    index = torch.arange(num_blocks, dtype=torch.int32, device=layout.device)
    tiles = sequences[torch.searchsorted(ends[:-1], index, right=True)]
    tiles[:, 3] = (index - tiles[:, 3]) * rows
    return Tables(_ordered(tiles, ends[-1] - 1 - index, rows), sequences, sharing)


def _ordered(tiles: torch.Tensor, from_end: torch.Tensor, rows: int) -> torch.Tensor:
    """[2, B, c] of [B, c]: sorted by how many keys a block's queries see, and by how many queries see its keys.
    from_end: number of used blocks that follow; negative for unused ones."""
    length, prefix, first = tiles[:, 1], tiles[:, 2], tiles[:, 3]
    seen = torch.maximum(prefix, torch.minimum(first + rows, length))
    seeing = torch.where(first < prefix, length, length - first)
    if tiles.shape[1] > 4:
        seen, seeing = seen + tiles[:, 5], seeing + tiles[:, 7]
    windows = (from_end // WINDOW).long() * (1 << 32)
    order = (torch.stack((seen, seeing)) + windows).sort(dim=1, descending=True, stable=True).indices
    return tiles[order]


def _sharing(layout: Layout, prefix_of: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Four columns, [S] each: start in the stream of the prefix that a sequence shares, its length (0: it shares none), start
    in the second result of the queries that share its own prefix, and their number. Second: [T] int32, positions of sequences
    that share, by owner of the prefix, in stream order; the rest is unused."""
    num_sequences = layout.num_sequences
    shares = prefix_of >= 0
    owner = prefix_of.clamp(min=0).long()
    shared_start = layout.sequence_starts[owner] * shares
    shared = layout.prefix_lengths[owner] * shares
    owner = owner.masked_fill(~shares, num_sequences)  # torch.where would copy the number to the device and synchronise
    _, positions, begins = group(owner[layout.position_sequence], num_sequences)
    return [shared_start, shared, begins[:-1], begins.diff()], positions.to(torch.int32)


class _Call(NamedTuple):
    """The operators' arguments other than activations and their gradients."""

    tiles: torch.Tensor
    sequences: torch.Tensor
    sharing: torch.Tensor
    position_keys: torch.Tensor
    probability: float
    site: int
    whole: int


def _arguments(query_key_value: torch.Tensor, call: _Call) -> _Arguments:
    num_positions, _, num_heads, head_size = query_key_value.shape
    return _Arguments(
        query_key_value=query_key_value,
        tiles=call.tiles,
        key_tiles=call.tiles[1],
        sequences=call.sequences,
        sharing=call.sharing if call.sharing.numel() else None,
        position_keys=call.position_keys,
        num_tiles=call.tiles.shape[1],
        num_sequences=len(call.sequences) - 1,
        num_positions=num_positions,
        num_heads=num_heads,
        scale=1 / (math.sqrt(head_size) * math.log(2)),
        whole=call.whole,
        **launcher.dropout_fields(call.probability, call.site),
    )


def _forward(query_key_value: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    query_key_value = launcher.aligned(query_key_value)
    output, log_sums = _forward_shapes(query_key_value)
    arguments = _arguments(query_key_value, _Call(*rest))
    arguments.set(output=output, log_sums=log_sums)
    launcher.bound("unimo_attention_forward", query_key_value)(arguments)
    return output, log_sums


def _forward_shapes(query_key_value: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    num_positions, _, num_heads, head_size = query_key_value.shape
    output = query_key_value.new_empty((num_positions, num_heads, head_size))
    return output, query_key_value.new_empty((num_heads, num_positions), dtype=torch.float32)


def _backward(
    gradient: torch.Tensor, query_key_value: torch.Tensor, output: torch.Tensor, log_sums: torch.Tensor, *rest: Any
) -> torch.Tensor:
    call = _Call(*rest)
    gradient, query_key_value = launcher.aligned(gradient), launcher.aligned(query_key_value)
    input_gradient, deltas = torch.empty_like(query_key_value), torch.empty_like(log_sums)
    row_keys = torch.empty_like(log_sums, dtype=torch.int32) if call.probability else None
    arguments = _arguments(query_key_value, call)
    arguments.set(output=output, log_sums=log_sums, output_gradient=gradient, input_gradient=input_gradient)
    arguments.set(deltas=deltas, row_keys=row_keys)
    launcher.bound("unimo_attention_backward", query_key_value)(arguments)
    return input_gradient


def _backward_shapes(gradient: torch.Tensor, query_key_value: torch.Tensor, *_: Any) -> torch.Tensor:
    return query_key_value.new_empty(query_key_value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query_key_value, tiles, sequences, sharing, position_keys, ctx.probability, ctx.site, ctx.whole = inputs
    ctx.save_for_backward(query_key_value, *output, tiles, sequences, sharing, position_keys)
    ctx.mark_non_differentiable(output[1])


def _derivative(ctx: Any, gradient: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    result = attention_backward(gradient, *ctx.saved_tensors, ctx.probability, ctx.site, ctx.whole)
    return result, *[None] * 7


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
attention_forward = launcher.Operator(
    _OPERATORS,
    "attention_forward(Tensor query_key_value, Tensor tiles, Tensor sequences, Tensor sharing, Tensor position_keys,"
    " float probability, int site, int whole) -> (Tensor, Tensor)",
    _forward,
    _forward_shapes,
    derivative=_derivative,
    save=_save,
)
attention_backward = launcher.Operator(
    _OPERATORS,
    "attention_backward(Tensor gradient, Tensor query_key_value, Tensor output, Tensor log_sums, Tensor tiles, Tensor sequences,"
    " Tensor sharing, Tensor position_keys, float probability, int site, int whole) -> Tensor",
    _backward,
    _backward_shapes,
)
