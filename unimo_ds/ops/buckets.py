"""Sequences of similar length padded together, and the index tables by which bucketed attention gathers inputs and outputs.

One table gathers queries, keys and values of all buckets into [B, H, L, D] order, another gathers the result back, and with
roles exchanged they serve the backward pass: no scatter, so results are deterministic. The keys and values of a shared prefix
are gathered once for each sequence that sees them.
A plan depends only on the layout, and all layers of a forward share it.

Letters: T stream positions, H heads, D head size, S sequences, B sequences of a bucket, L and K padded numbers of its queries
and keys, M = sum of B * L over the buckets, N = sum of B * K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.ops.layout import Layout

Integers = NDArray[np.int64]

MAX_SCORES = 1 << 21
"""Limit on the attention scores of one bucket: 8 MB in fp32, so that they stay in cache between passes over them."""


@dataclass(frozen=True)
class Bucket:
    """B sequences padded to L queries and K keys."""

    start: int
    """First of its B * H * L query rows in bucketed order."""
    key_start: int
    """First of its B * H * K key rows."""
    num_rows: int
    """B * H"""
    length: int
    """L"""
    num_keys: int
    """K; equal to L if no prefix is shared."""
    bias: torch.Tensor | None
    """[B * H, L, K] fp32, 0 where the query sees the key, -inf elsewhere; None if every query sees every key."""


@dataclass(frozen=True)
class Plan:
    """The buckets of one layout, for one number of heads."""

    buckets: tuple[Bucket, ...]
    gather_in: torch.Tensor
    """[(M + 2 N) * H] int64: rows of [T * 3 * H, D], first the queries, then keys, then values, each in bucketed order
    [bucket, B, H, L or K]; padding repeats row 0."""
    gather_one: torch.Tensor
    """[M * H] int64: rows of [T * H, D] in bucketed order; padding repeats row 0."""
    gather_out: torch.Tensor
    """[T * H] int64: bucketed row of each (position, head)."""
    gather_out_three: torch.Tensor
    """[T * 3 * H] int64: the same for [T, 3, H] among all rows of `gather_in`."""
    padding: torch.Tensor
    """int64: bucketed query rows that are padding."""
    shared_rows: torch.Tensor
    """int64: rows of `gather_in` that copy shared prefixes."""
    shared_targets: torch.Tensor
    """int64: the rows of [T * 3 * H, D] that these copy."""

    @property
    def num_rows(self) -> int:
        """M * H"""
        return int(self.gather_one.shape[0])


class _Sequences(NamedTuple):
    """A layout's sequences on the host: [S] each."""

    starts: Integers
    lengths: Integers
    prefixes: Integers
    shared_starts: Integers
    """First position of the shared prefix; 0 if none."""
    shared: Integers
    """Length of the shared prefix; 0 if none."""


def bucket_length(length: int) -> int:
    """`length` rounded up to a multiple of 1/8 of its power of two, but at least 4: at most 25 % padding from 16 on."""
    step = max(4, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


def make_plan(layout: Layout, num_heads: int) -> Plan:
    """Buckets and index tables. Reads sequence lengths on the host."""
    sequences = _on_host(layout)
    padded = _rounded_up(sequences.lengths)
    # Without sharing, a bucket has as many keys as queries.
    padded_keys = np.where(sequences.shared > 0, _rounded_up(sequences.lengths + sequences.shared), padded)
    num_positions, device = layout.num_positions, layout.device
    buckets: list[Bucket] = []
    query_rows, key_rows = _Rows(num_positions, num_heads), _Rows(num_positions, num_heads)
    for num_keys, length in np.unique(np.stack((padded_keys, padded), 1), axis=0).tolist():
        members = np.flatnonzero((padded == length) & (padded_keys == num_keys))
        per_bucket = max(1, MAX_SCORES // (num_heads * length * num_keys))
        for first in range(0, len(members), per_bucket):
            chosen = _Sequences(*(column[members[first : first + per_bucket]] for column in sequences))
            bias = _bias(chosen, length, num_keys, num_heads)
            buckets.append(
                Bucket(
                    start=query_rows.count,
                    key_start=key_rows.count,
                    num_rows=len(chosen.lengths) * num_heads,
                    length=length,
                    num_keys=num_keys,
                    bias=None if bias is None else bias.to(device),
                )
            )
            query_rows.add(chosen, length, shared=np.zeros_like(chosen.shared))
            key_rows.add(chosen, num_keys, shared=chosen.shared)
    query_position, query_head = query_rows.columns()
    key_position, key_head = key_rows.columns()
    values_start = query_rows.count + key_rows.count
    shared_rows, shared_positions, shared_heads = key_rows.shared_columns()
    gather_in = [
        query_position * 3 * num_heads + query_head,
        *((key_position * 3 + part) * num_heads + key_head for part in (1, 2)),
    ]
    out_three = [query_rows.row_of, query_rows.count + key_rows.row_of, values_start + key_rows.row_of]
    tables = (
        np.concatenate(gather_in),
        query_position * num_heads + query_head,
        query_rows.row_of.reshape(-1),
        np.stack(out_three, axis=1).reshape(-1),
        query_rows.padding(),
        np.concatenate((query_rows.count + shared_rows, values_start + shared_rows)),
        np.concatenate([(shared_positions * 3 + part) * num_heads + shared_heads for part in (1, 2)]),
    )
    return Plan(tuple(buckets), *(torch.from_numpy(table).to(device) for table in tables))


def _on_host(layout: Layout) -> _Sequences:
    starts = layout.sequence_starts.to("cpu").numpy().astype(np.int64)
    prefixes = layout.prefix_lengths.to("cpu").numpy().astype(np.int64)
    shared_starts, shared = np.zeros_like(prefixes), np.zeros_like(prefixes)
    if layout.prefix_of is not None:
        owners = layout.prefix_of.to("cpu").numpy().astype(np.int64)
        shared_starts = np.where(owners >= 0, starts[owners], 0)
        shared = np.where(owners >= 0, prefixes[owners], 0)
    return _Sequences(starts[:-1], np.diff(starts), prefixes, shared_starts, shared)


def _rounded_up(lengths: Integers) -> Integers:
    return np.array([bucket_length(int(length)) for length in lengths], dtype=np.int64)


class _Rows:
    """Rows of queries, or of keys, in bucketed order: one per (position, head), with padding."""

    def __init__(self, num_positions: int, num_heads: int) -> None:
        self.count = 0
        self.row_of = np.zeros((num_positions, num_heads), dtype=np.int64)
        """[T, H] row of each position in its own sequence (not as a copy of a shared prefix)."""
        self._heads = np.arange(num_heads)
        self._positions: list[Integers] = [np.zeros(0, np.int64)]
        self._head_columns: list[Integers] = [np.zeros(0, np.int64)]
        self._shared: list[tuple[Integers, Integers, Integers]] = []

    def add(self, chosen: _Sequences, length: int, *, shared: Integers) -> None:
        """Rows of one bucket: for each sequence `shared` positions of another one, its own, and padding up to `length`."""
        offsets = np.arange(length)
        is_shared = offsets < shared[:, None]  # [B, L]
        own = offsets - shared[:, None]
        is_own = ~is_shared & (own < chosen.lengths[:, None])
        position = np.where(is_own, chosen.starts[:, None] + own, 0)
        position = np.where(is_shared, chosen.shared_starts[:, None] + offsets, position)
        shape = (len(chosen.lengths), len(self._heads), length)
        rows = self.count + np.arange(math.prod(shape)).reshape(shape)
        by_position = rows.transpose(0, 2, 1)  # [B, L, H]
        self.row_of[position[is_own]] = by_position[is_own]
        if is_shared.any():
            copies = by_position[is_shared]
            places = np.broadcast_to(position[is_shared][:, None], copies.shape)
            self._shared.append((copies.ravel(), places.ravel(), np.broadcast_to(self._heads, copies.shape).ravel()))
        self._positions.append(np.broadcast_to(position[:, None, :], shape).reshape(-1))
        self._head_columns.append(np.broadcast_to(self._heads[None, :, None], shape).reshape(-1))
        self.count += math.prod(shape)

    def columns(self) -> tuple[Integers, Integers]:
        """Stream position and head of every row."""
        return np.concatenate(self._positions), np.concatenate(self._head_columns)

    def shared_columns(self) -> tuple[Integers, Integers, Integers]:
        """Row, stream position and head of every copy of a shared prefix."""
        nothing = (np.zeros(0, np.int64),) * 3
        rows, positions, heads = (np.concatenate(parts) for parts in zip(nothing, *self._shared, strict=True))
        return rows, positions, heads

    def padding(self) -> Integers:
        is_padding = np.ones(self.count, dtype=bool)
        is_padding[self.row_of.reshape(-1)] = False
        return np.flatnonzero(is_padding)


def _bias(chosen: _Sequences, length: int, num_keys: int, num_heads: int) -> torch.Tensor | None:
    """[B * H, L, K] fp32 of a bucket. Padded queries see key 0, so that no row is empty."""
    query = torch.arange(length)[:, None]
    shared, count, prefix = (
        torch.from_numpy(column)[:, None, None] for column in (chosen.shared, chosen.lengths, chosen.prefixes)
    )
    own = torch.arange(num_keys) - shared  # [B, 1, K]
    seen = (own < 0) | (((own < prefix) | (own <= query)) & (own < count))  # [B, L, K]
    if bool(seen.all()):
        return None
    bias = torch.zeros(seen.shape).masked_fill_(~seen, -math.inf)
    return bias[:, None].expand(-1, num_heads, -1, -1).reshape(-1, length, num_keys)


def plan_of(layout: Layout, num_heads: int) -> Plan:
    """The layout's plan, made once per layout."""
    name = f"buckets/{num_heads}"
    if name not in layout.tables:
        layout.tables[name] = make_plan(layout, num_heads)
    plan: Plan = layout.tables[name]
    return plan
