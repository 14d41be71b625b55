"""The path of packed attention made of plain torch: sequences of similar length are padded together and multiplied in batches.

One gather brings queries, keys and values of all buckets into [B, H, L, D] order, one gather brings the result back, and
the same two index tables, exchanged, serve the backward pass: no scatter, so results are deterministic. Where prefixes are
shared, their keys and values are gathered once for each sequence that sees them, and the gradients of the copies are added up.
Index tables and masks depend on the layout alone and are shared by all layers of a forward.

Letters: T stream positions, H heads, D head size, S sequences, B sequences of a bucket, L padded length of a bucket, K padded
number of its keys, M = sum of B * L over the buckets, N = sum of B * K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.ops.layout import Layout
from unimo_ds.ops.linear import widens
from unimo_ds.utils import seed

Integers = NDArray[np.int64]

_MAX_SCORES = 1 << 21
"""Attention scores of one bucket: 8 MB in fp32, so that the passes over them stay near the processor."""


@dataclass(frozen=True)
class Bucket:
    """B sequences padded to L queries and K keys."""

    start: int
    """Where its B * H * L query rows begin in the bucketed order."""
    key_start: int
    """Where its B * H * K key rows begin."""
    num_rows: int
    """B * H"""
    length: int
    """L"""
    num_keys: int
    """K; L where no prefix is shared."""
    bias: torch.Tensor | None
    """[B * H, L, K] fp32, 0 where the query sees the key, -inf elsewhere; None where every query sees every key."""


@dataclass(frozen=True)
class Plan:
    """How one layout is cut into buckets, for one number of heads."""

    buckets: tuple[Bucket, ...]
    gather_in: torch.Tensor
    """[(M + 2 N) * H] int64: rows of [T * 3 * H, D], first the queries, then keys, then values, each in bucketed order
    [bucket, B, H, L or K]; padding repeats row 0."""
    gather_one: torch.Tensor
    """[M * H] int64: rows of [T * H, D] in bucketed order; padding repeats row 0."""
    gather_out: torch.Tensor
    """[T * H] int64: where row (position, head) lies in the bucketed order."""
    gather_out_three: torch.Tensor
    """[T * 3 * H] int64: the same for [T, 3, H] among all rows of `gather_in`."""
    padding: torch.Tensor
    """int64: bucketed query rows that are padding."""
    shared_rows: torch.Tensor
    """int64: rows of `gather_in` that are copies of shared prefixes."""
    shared_targets: torch.Tensor
    """int64: rows of [T * 3 * H, D] that they are copies of."""

    @property
    def num_rows(self) -> int:
        """M * H"""
        return int(self.gather_one.shape[0])


@dataclass(frozen=True)
class _Sequences:
    """A layout's sequences on the host: [S] each."""

    starts: Integers
    lengths: Integers
    prefixes: Integers
    shared_starts: Integers
    """Where the prefix that is shared begins; 0 where none is."""
    shared: Integers
    """How many positions of another sequence are seen."""

    def __getitem__(self, chosen: Integers) -> _Sequences:
        return _Sequences(
            self.starts[chosen],
            self.lengths[chosen],
            self.prefixes[chosen],
            self.shared_starts[chosen],
            self.shared[chosen],
        )


def bucket_length(length: int) -> int:
    """`length` rounded up to a multiple of an eighth of its power of two, 4 at least: at most 25 % of padding from 16 on."""
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
        per_bucket = max(1, _MAX_SCORES // (num_heads * length * num_keys))
        for first in range(0, len(members), per_bucket):
            chosen = sequences[members[first : first + per_bucket]]
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
    """The rows of queries, or of keys, in bucketed order: one a (position, head), with padding."""

    def __init__(self, num_positions: int, num_heads: int) -> None:
        self.count = 0
        self.row_of = np.zeros((num_positions, num_heads), dtype=np.int64)
        """[T, H] the row of each position among its own sequence's."""
        self._heads = np.arange(num_heads)
        self._positions: list[Integers] = [np.zeros(0, np.int64)]
        self._head_columns: list[Integers] = [np.zeros(0, np.int64)]
        self._shared: list[tuple[Integers, Integers, Integers]] = []

    def add(self, chosen: _Sequences, length: int, *, shared: Integers) -> None:
        """The rows of one bucket: for each sequence `shared` positions of another one, its own, and padding up to `length`."""
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
    name = f"bucketed_attention/{num_heads}"
    if name not in layout.tables:
        layout.tables[name] = make_plan(layout, num_heads)
    plan: Plan = layout.tables[name]
    return plan


def bucketed_attention(
    query_key_value_T3HD: torch.Tensor, layout: Layout, *, probability: float = 0.0, site: int = 0
) -> torch.Tensor:
    """`packed_attention` in buckets, [T, H, D]. Computes in fp32 where `ops.linear.widens` says so."""
    dtype = query_key_value_T3HD.dtype
    wide = query_key_value_T3HD.float() if widens(query_key_value_T3HD) else query_key_value_T3HD
    result: torch.Tensor = _BucketedAttention.apply(wide, layout, probability, site)  # type: ignore[no-untyped-call]
    return result.to(dtype)


class _BucketedAttention(torch.autograd.Function):
    """Forward keeps gathered inputs, probabilities and dropout masks; backward is the textbook one, bucket by bucket."""

    @staticmethod
    def forward(
        ctx: Any, query_key_value_T3HD: torch.Tensor, layout: Layout, probability: float, site: int
    ) -> torch.Tensor:
        num_positions, _, num_heads, head_size = query_key_value_T3HD.shape
        plan = plan_of(layout, num_heads)
        scale = 1 / math.sqrt(head_size)
        keep_scale = seed.keep_scale(probability)
        inputs = query_key_value_T3HD.reshape(-1, head_size).index_select(0, plan.gather_in)
        outputs = inputs.new_empty((plan.num_rows, head_size))
        keys = None
        if probability:
            keys_TH = seed.head_keys(seed.row_keys(layout.position_keys, site), num_heads)
            keys = keys_TH.reshape(-1).index_select(0, plan.gather_one)
        saved: list[torch.Tensor | None] = [inputs]
        for bucket in plan.buckets:
            query, key, value = _parts(inputs, plan, bucket)
            weights = _scores(query, key, bucket, scale).softmax(-1)
            keep, kept = None, weights
            if keys is not None:
                rows = keys[bucket.start : bucket.start + bucket.num_rows * bucket.length]
                keep = seed.keep_mask(rows, bucket.num_keys, probability, dtype=weights.dtype).view_as(weights)
                kept = weights * keep
            output = _queries(outputs, bucket)
            torch.baddbmm(output, kept, value, beta=0, alpha=keep_scale, out=output)
            saved += [weights, keep]
        ctx.save_for_backward(*saved)
        ctx.plan, ctx.scale, ctx.keep_scale = plan, scale, keep_scale
        return outputs.index_select(0, plan.gather_out).view(num_positions, num_heads, head_size)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        plan: Plan = ctx.plan
        inputs, *saved = ctx.saved_tensors
        num_positions, num_heads, head_size = gradients[0].shape
        output_gradient = gradients[0].reshape(-1, head_size).index_select(0, plan.gather_one)
        # Padded queries hold a copy of row 0: their gradient must not reach keys and values.
        output_gradient.index_fill_(0, plan.padding, 0)
        input_gradients = torch.empty_like(inputs)
        for bucket, weights, keep in zip(plan.buckets, saved[::2], saved[1::2], strict=True):
            query, key, value = _parts(inputs, plan, bucket)
            query_gradient, key_gradient, value_gradient = _parts(input_gradients, plan, bucket)
            gradient = _queries(output_gradient, bucket)
            kept = weights if keep is None else weights * keep
            _product(kept.transpose(1, 2), gradient, value_gradient, ctx.keep_scale)
            weights_gradient = torch.bmm(gradient, value.transpose(1, 2))
            if keep is not None:
                weights_gradient.mul_(keep).mul_(ctx.keep_scale)
            scores_gradient = torch._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
            _product(scores_gradient, key, query_gradient, ctx.scale)
            _product(scores_gradient.transpose(1, 2), query, key_gradient, ctx.scale)
        result = input_gradients.index_select(0, plan.gather_out_three)
        if len(plan.shared_rows):
            result.index_add_(0, plan.shared_targets, input_gradients.index_select(0, plan.shared_rows))
        return result.view(num_positions, 3, num_heads, head_size), None, None, None


def _queries(rows: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """[B * H, L, D] view of a bucket's rows of [M * H, D] or more."""
    return rows[bucket.start : bucket.start + bucket.num_rows * bucket.length].view(bucket.num_rows, bucket.length, -1)


def _parts(rows: torch.Tensor, plan: Plan, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of a bucket's queries [B * H, L, D], keys and values [B * H, K, D] in rows that are laid out like `gather_in`."""
    num_key_rows = (len(rows) - plan.num_rows) // 2
    size = bucket.num_rows * bucket.num_keys
    first = plan.num_rows + bucket.key_start
    key, value = (rows[start : start + size] for start in (first, first + num_key_rows))
    shape = (bucket.num_rows, bucket.num_keys, -1)
    return _queries(rows, bucket), key.view(shape), value.view(shape)


def _scores(query: torch.Tensor, key: torch.Tensor, bucket: Bucket, scale: float) -> torch.Tensor:
    """[B * H, L, K] scaled and masked."""
    if bucket.bias is None:
        return torch.bmm(query, key.transpose(1, 2)).mul_(scale)
    return torch.baddbmm(bucket.bias.to(query.dtype), query, key.transpose(1, 2), alpha=scale)


def _product(left: torch.Tensor, right: torch.Tensor, output: torch.Tensor, scale: float) -> None:
    """`output = scale * left @ right`, in place."""
    torch.baddbmm(output, left, right, beta=0, alpha=scale, out=output)
