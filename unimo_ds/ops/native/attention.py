"""Packed attention by the CUDA kernels of `kernels/attention/`, as the torch operators `unimo::attention_forward` and
`unimo::attention_backward`: with shapes for tracing and a derivative, no synchronisation with the host, same bits every run.

Letters: T stream positions, H heads, D head size (64), S sequences, B blocks (64 rows of one sequence each, or as many as the
library wants).
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch

from unimo_ds.ops.layout import Layout
from unimo_ds.ops.native import launcher, library
from unimo_ds.utils import seed

HEAD_SIZE = 64
WHOLE_BACKWARD = "beside"
"""Which sequences go backward whole, by a kernel that makes scores once (sm_90, up to 128 positions, nobody shares a prefix):
`never`, none; `alone`, those of streams without longer ones; `beside`, also those of other streams, whose longer ones take the
kernels for any length. No GPU has measured it yet (`library.refusal_of_untried`)."""
FORWARD = "bulk"
"""How the forward kernel of sm_90 loads tiles where nobody shares a prefix: `copies`, each thread its share; `bulk`, whole ones
by the tensor memory unit, for blocks of two warpgroups. No GPU has measured `bulk` yet (`library.refusal_of_untried`)."""
_KEEPS_ALL = -32768
_NOT_WHOLE, _SHORT_WHOLE, _ALL_WHOLE = range(3)


class _Arguments(ctypes.Structure):
    """`AttentionArguments` of kernels/attention/geometry.cuh, field by field."""

    _fields_ = (
        ("query_key_value", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("log_sums", ctypes.c_void_p),
        ("output_gradient", ctypes.c_void_p),
        ("input_gradient", ctypes.c_void_p),
        ("deltas", ctypes.c_void_p),
        ("row_keys", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("position_keys", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int),
        ("num_positions", ctypes.c_int),
        ("num_heads", ctypes.c_int),
        ("dropout_threshold", ctypes.c_int),
        ("site_key", ctypes.c_uint),
        ("keep_scale", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("whole", ctypes.c_int),
        ("whole_length", ctypes.c_int),
        ("sharing", ctypes.c_void_p),
    )


def refusal(query_key_value_T3HD: torch.Tensor, *, may_build: bool = False) -> str | None:
    """Why the kernels cannot take this input, None where they can. may_build: compile a missing library."""
    head_size = query_key_value_T3HD.shape[-1]
    if head_size != HEAD_SIZE:
        return f"the kernel is for heads of {HEAD_SIZE}, not {head_size}"
    return library.refusal(query_key_value_T3HD, may_build=may_build)


def attention(
    query_key_value_T3HD: torch.Tensor, layout: Layout, *, probability: float = 0.0, site: int = 0
) -> torch.Tensor:
    """`packed_attention` by the kernels, [T, H, D]. Callers ask `refusal` first."""
    tiles, sharing = tables_of(layout)
    keys = layout.position_keys if probability else tiles.new_empty(0)
    whole = _whole(query_key_value_T3HD, layout)
    bulk = _bulk_tiles(query_key_value_T3HD, layout)
    output, _ = torch.ops.unimo.attention_forward(
        query_key_value_T3HD, tiles, sharing, keys, probability, site, whole, bulk
    )
    return output  # type: ignore[no-any-return]


def _bulk_tiles(query_key_value: torch.Tensor, layout: Layout) -> torch.Tensor | None:
    """The table of blocks for the forward kernel that loads whole tiles, None where another one is to run."""
    if FORWARD == "copies" or layout.prefix_of is not None or library.refusal_of_untried(query_key_value):
        return None
    if "native_attention_bulk" not in layout.tables:
        rows = library.library_of(query_key_value.device).unimo_attention_bulk_rows()
        layout.tables["native_attention_bulk"] = make_tables(layout, rows=rows)[0] if rows else None
    table: torch.Tensor | None = layout.tables["native_attention_bulk"]
    return table


def _whole(query_key_value: torch.Tensor, layout: Layout) -> int:
    """Which sequences of the layout go backward whole, one of the three numbers above."""
    if WHOLE_BACKWARD == "never" or layout.prefix_of is not None or library.refusal_of_untried(query_key_value):
        return _NOT_WHOLE
    if layout.longest <= library.library_of(query_key_value.device).unimo_attention_whole_length():
        return _ALL_WHOLE
    return _SHORT_WHOLE if WHOLE_BACKWARD == "beside" else _NOT_WHOLE


def tables_of(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """`make_tables` for the layout's library; made on the device, once per layout."""
    if "native_attention" not in layout.tables:
        rows = library.library_of(layout.device).unimo_attention_block_rows()
        layout.tables["native_attention"] = make_tables(layout, rows=rows)
    tables: tuple[torch.Tensor, torch.Tensor] = layout.tables["native_attention"]
    return tables


def make_tables(layout: Layout, *, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows each block takes, [B, 4] int32: (start of the sequence in the stream, its length, its prefix, first row), the
    sequences with the most work for a block first; and an empty tensor. Where prefixes are shared, [B, 8] (see `_sharing`) and
    [T] int32, the positions of the sequences that share one, by whose it is.

    Sizes follow from T and S alone, so that nothing is read back: with R `rows` a block, B = floor((T + (R - 1) S) / R), the
    most that S sequences of together T positions can need. Blocks left over have length 0.
    """
    starts, num_sequences = layout.sequence_starts, layout.num_sequences
    lengths = starts[1:] - starts[:-1]
    columns, work = [starts[:-1], lengths, layout.prefix_lengths], lengths
    sharing = starts.new_empty(0, dtype=torch.int32)
    if layout.prefix_of is not None:
        others, sharing = _sharing(layout, layout.prefix_of)
        columns += others
        work = lengths + others[1] + others[3]
    num_tiles = (layout.num_positions + (rows - 1) * num_sequences) // rows
    if num_sequences == 0:
        return starts.new_empty((0, len(columns) + 1), dtype=torch.int32), sharing
    order = work.sort(descending=True, stable=True).indices
    counts = (lengths[order] + (rows - 1)) // rows
    ends = counts.cumsum(0)
    index = torch.arange(num_tiles, device=layout.device)
    slot = torch.searchsorted(ends, index, right=True)
    used = slot < num_sequences
    slot = slot.clamp(max=num_sequences - 1)
    sequence, first = order[slot], (index - (ends - counts)[slot]) * rows
    columns = [column[sequence] for column in columns]
    columns.insert(3, first)
    return torch.stack([column.to(torch.int32) * used for column in columns], 1), sharing


def _sharing(layout: Layout, prefix_of: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Four columns, [S] each: where the prefix that a sequence shares begins in the stream, its length (0: it shares none), where
    the queries of those that share its own prefix begin in the second result, and how many these are. Second: [T] int32,
    positions of sequences that share, by whose prefix it is, in the order of the stream; what follows them is not used."""
    num_sequences = layout.num_sequences
    shares = prefix_of >= 0
    owner = prefix_of.clamp(min=0).long()
    shared_start = layout.sequence_starts[owner] * shares
    shared = layout.prefix_lengths[owner] * shares
    owner = owner.masked_fill(~shares, num_sequences)  # torch.where would copy the number to the device, and wait
    owners, positions = owner[layout.position_sequence].sort(stable=True)
    ends = torch.searchsorted(owners, torch.arange(num_sequences + 1, device=layout.device))
    return [shared_start, shared, ends[:-1], ends.diff()], positions.to(torch.int32)


def _arguments(
    query_key_value: torch.Tensor,
    tiles: torch.Tensor,
    sharing: torch.Tensor,
    position_keys: torch.Tensor,
    probability: float,
    site: int,
    whole: int,
) -> _Arguments:
    num_positions, _, num_heads, head_size = query_key_value.shape
    return _Arguments(
        query_key_value=query_key_value.data_ptr(),
        tiles=tiles.data_ptr(),
        sharing=sharing.data_ptr() if sharing.numel() else None,
        position_keys=position_keys.data_ptr(),
        num_tiles=tiles.shape[0],
        num_positions=num_positions,
        num_heads=num_heads,
        dropout_threshold=seed.keep_threshold(probability) if probability else _KEEPS_ALL,
        site_key=((site + 1) * 0x9E3779B9) & 0xFFFFFFFF,
        keep_scale=seed.keep_scale(probability),
        scale=1 / (math.sqrt(head_size) * math.log(2)),
        whole=whole,
    )


def _forward(
    query_key_value: torch.Tensor,
    tiles: torch.Tensor,
    sharing: torch.Tensor,
    position_keys: torch.Tensor,
    probability: float,
    site: int,
    whole: int,
    bulk_tiles: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    query_key_value = query_key_value.contiguous()
    output, log_sums = _forward_shapes(query_key_value, tiles, sharing, position_keys, probability, site, whole)
    arguments = _arguments(query_key_value, tiles, sharing, position_keys, probability, site, whole)
    arguments.output, arguments.log_sums = output.data_ptr(), log_sums.data_ptr()
    name = "unimo_attention_forward"
    if bulk_tiles is not None:
        arguments.tiles, arguments.num_tiles = bulk_tiles.data_ptr(), bulk_tiles.shape[0]
        name = "unimo_attention_forward_bulk"
    launcher.bound(name, query_key_value)(arguments)
    return output, log_sums


def _forward_shapes(
    query_key_value: torch.Tensor,
    tiles: torch.Tensor,
    sharing: torch.Tensor,
    position_keys: torch.Tensor,
    probability: float,
    site: int,
    whole: int,
    bulk_tiles: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_positions, _, num_heads, head_size = query_key_value.shape
    output = query_key_value.new_empty((num_positions, num_heads, head_size))
    return output, query_key_value.new_empty((num_heads, num_positions), dtype=torch.float32)


def _backward(
    gradient: torch.Tensor,
    query_key_value: torch.Tensor,
    output: torch.Tensor,
    log_sums: torch.Tensor,
    tiles: torch.Tensor,
    sharing: torch.Tensor,
    position_keys: torch.Tensor,
    probability: float,
    site: int,
    whole: int,
) -> torch.Tensor:
    gradient, query_key_value = gradient.contiguous(), query_key_value.contiguous()
    input_gradient, deltas = torch.empty_like(query_key_value), torch.empty_like(log_sums)
    arguments = _arguments(query_key_value, tiles, sharing, position_keys, probability, site, whole)
    arguments.output, arguments.log_sums = output.data_ptr(), log_sums.data_ptr()
    arguments.output_gradient, arguments.deltas = gradient.data_ptr(), deltas.data_ptr()
    arguments.input_gradient = input_gradient.data_ptr()
    row_keys = torch.empty_like(log_sums, dtype=torch.int32) if probability else position_keys
    arguments.row_keys = row_keys.data_ptr()
    launcher.bound("unimo_attention_backward", query_key_value)(arguments)
    return input_gradient


def _backward_shapes(gradient: torch.Tensor, query_key_value: torch.Tensor, *_: Any) -> torch.Tensor:
    return query_key_value.new_empty(query_key_value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query_key_value, tiles, sharing, position_keys, ctx.probability, ctx.site, ctx.whole, *_ = inputs
    ctx.save_for_backward(query_key_value, *output, tiles, sharing, position_keys)
    ctx.mark_non_differentiable(output[1])


def _derivative(ctx: Any, gradient: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    result = torch.ops.unimo.attention_backward(gradient, *ctx.saved_tensors, ctx.probability, ctx.site, ctx.whole)
    return result, None, None, None, None, None, None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
launcher.define(
    _OPERATORS,
    "attention_forward(Tensor query_key_value, Tensor tiles, Tensor sharing, Tensor position_keys, float probability, int site,"
    " int whole, Tensor? bulk_tiles=None) -> (Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
launcher.define(
    _OPERATORS,
    "attention_backward(Tensor gradient, Tensor query_key_value, Tensor output, Tensor log_sums, Tensor tiles,"
    " Tensor sharing, Tensor position_keys, float probability, int site, int whole) -> Tensor",
    _backward,
    _backward_shapes,
)
launcher.differentiate(_OPERATORS, "attention_forward", _derivative, _save)
