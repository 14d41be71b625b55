"""The path of packed attention made of plain torch: sequences of similar length are padded together and multiplied in batches.

One gather brings queries, keys and values of all buckets into [3, B, H, L, D] order, one gather brings the result back, and
the same two index tables, exchanged, serve the backward pass: no scatter, so results are deterministic. Index tables and
masks depend on the layout alone and are shared by all layers of a forward.

Letters: T stream positions, H heads, D head size, B sequences of a bucket, L padded length of a bucket, M = sum of B * L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unimo_ds.ops.layout import Layout
from unimo_ds.ops.linear import widens
from unimo_ds.utils import seed

_MAX_SCORES = 1 << 21
"""Attention scores of one bucket: 8 MB in fp32, so that the passes over them stay near the processor."""


@dataclass(frozen=True)
class Bucket:
    """B sequences padded to L positions; `start` is where its B * H * L rows begin in the bucketed order."""

    start: int
    num_rows: int
    """B * H"""
    length: int
    bias: torch.Tensor | None
    """[B * H, L, L] fp32, 0 where the query sees the key, -inf elsewhere; None where every query sees every key."""


@dataclass(frozen=True)
class Plan:
    """How one layout is cut into buckets, for one number of heads."""

    buckets: tuple[Bucket, ...]
    gather_in: torch.Tensor
    """[3 * M * H] int64: rows of [T * 3 * H, D] in bucketed order [3, bucket, B, H, L]; padding repeats row 0."""
    gather_one: torch.Tensor
    """[M * H] int64: rows of [T * H, D] in bucketed order; padding repeats row 0."""
    gather_out: torch.Tensor
    """[T * H] int64: where row (position, head) lies in the bucketed order."""
    gather_out_three: torch.Tensor
    """[T * 3 * H] int64: the same for [T, 3, H]."""
    padding: torch.Tensor
    """int64: bucketed rows that are padding."""

    @property
    def num_rows(self) -> int:
        """M * H"""
        return int(self.gather_one.shape[0])


def bucket_length(length: int) -> int:
    """`length` rounded up to a multiple of an eighth of its power of two, 4 at least: at most 25 % of padding from 16 on."""
    step = max(4, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


def make_plan(layout: Layout, num_heads: int) -> Plan:
    """Buckets and index tables. Reads sequence lengths on the host."""
    starts = layout.sequence_starts.to("cpu").numpy().astype(np.int64)
    prefixes = layout.prefix_lengths.to("cpu").numpy().astype(np.int64)
    lengths = np.diff(starts)
    padded = np.array([bucket_length(int(length)) for length in lengths], dtype=np.int64)
    num_positions, device = layout.num_positions, layout.device
    buckets: list[Bucket] = []
    positions: list[np.ndarray] = []  # stream position of every bucketed row, in order
    heads: list[np.ndarray] = []
    row_of = np.zeros((num_positions, num_heads), dtype=np.int64)
    head_range = np.arange(num_heads)
    start_row = 0
    for length in np.unique(padded):
        members = np.flatnonzero(padded == length)
        per_bucket = max(1, _MAX_SCORES // int(num_heads * length * length))
        for first in range(0, len(members), per_bucket):
            chosen = members[first : first + per_bucket]
            offsets = np.arange(length)
            valid = offsets < lengths[chosen, None]  # [B, L]
            position = np.where(valid, starts[chosen, None] + offsets, 0)
            shape = (len(chosen), num_heads, int(length))
            rows = start_row + np.arange(math.prod(shape)).reshape(shape)
            row_of[position[valid]] = rows.transpose(0, 2, 1)[valid]
            positions.append(np.broadcast_to(position[:, None, :], shape).reshape(-1))
            heads.append(np.broadcast_to(head_range[None, :, None], shape).reshape(-1))
            bias = _bias(lengths[chosen], prefixes[chosen], int(length), num_heads)
            buckets.append(
                Bucket(
                    start=start_row,
                    num_rows=len(chosen) * num_heads,
                    length=int(length),
                    bias=None if bias is None else bias.to(device),
                )
            )
            start_row += math.prod(shape)
    position_of = np.concatenate([np.zeros(0, np.int64), *positions])
    head_of = np.concatenate([np.zeros(0, np.int64), *heads])
    gather_in = np.concatenate([(position_of * 3 + part) * num_heads + head_of for part in range(3)])
    gather_three = np.stack([row_of + part * start_row for part in range(3)], axis=1)
    is_padding = np.ones(start_row, dtype=bool)
    is_padding[row_of.reshape(-1)] = False
    tables = (
        gather_in,
        position_of * num_heads + head_of,
        row_of.reshape(-1),
        gather_three.reshape(-1),
        np.flatnonzero(is_padding),
    )
    return Plan(tuple(buckets), *(torch.from_numpy(table).to(device) for table in tables))


def _bias(
    lengths: np.ndarray[Any, np.dtype[np.int64]],
    prefixes: np.ndarray[Any, np.dtype[np.int64]],
    length: int,
    num_heads: int,
) -> torch.Tensor | None:
    """[B * H, L, L] fp32 of a bucket. Padded queries see key 0, so that no row is empty."""
    key = torch.arange(length)
    count, prefix = torch.from_numpy(lengths)[:, None, None], torch.from_numpy(prefixes)[:, None, None]
    seen = ((key < prefix) | (key <= key[:, None])) & (key < count)  # [B, L, L]
    if bool(seen.all()):
        return None
    bias = torch.zeros(seen.shape).masked_fill_(~seen, -math.inf)
    return bias[:, None].expand(-1, num_heads, -1, -1).reshape(-1, length, length)


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
        inputs = query_key_value_T3HD.reshape(-1, head_size).index_select(0, plan.gather_in).view(3, -1, head_size)
        outputs = torch.empty_like(inputs[0])
        keys = None
        if probability:
            keys_TH = seed.head_keys(seed.row_keys(layout.position_keys, site), num_heads)
            keys = keys_TH.reshape(-1).index_select(0, plan.gather_one)
        saved: list[torch.Tensor | None] = [inputs]
        for bucket in plan.buckets:
            query, key, value = (_part(part, bucket) for part in inputs)
            weights = _scores(query, key, bucket, scale).softmax(-1)
            keep, kept = None, weights
            if keys is not None:
                rows = keys[bucket.start : bucket.start + bucket.num_rows * bucket.length]
                keep = seed.keep_mask(rows, bucket.length, probability, dtype=weights.dtype).view_as(weights)
                kept = weights * keep
            output = _part(outputs, bucket)
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
            query, key, value = (_part(part, bucket) for part in inputs)
            query_gradient, key_gradient, value_gradient = (_part(part, bucket) for part in input_gradients)
            gradient = _part(output_gradient, bucket)
            kept = weights if keep is None else weights * keep
            _product(kept.transpose(1, 2), gradient, value_gradient, ctx.keep_scale)
            weights_gradient = torch.bmm(gradient, value.transpose(1, 2))
            if keep is not None:
                weights_gradient.mul_(keep).mul_(ctx.keep_scale)
            scores_gradient = torch._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
            _product(scores_gradient, key, query_gradient, ctx.scale)
            _product(scores_gradient.transpose(1, 2), query, key_gradient, ctx.scale)
        result = input_gradients.view(-1, head_size).index_select(0, plan.gather_out_three)
        return result.view(num_positions, 3, num_heads, head_size), None, None, None


def _part(rows: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """[B * H, L, D] view of a bucket's rows of [M * H, D]."""
    return rows[bucket.start : bucket.start + bucket.num_rows * bucket.length].view(bucket.num_rows, bucket.length, -1)


def _scores(query: torch.Tensor, key: torch.Tensor, bucket: Bucket, scale: float) -> torch.Tensor:
    """[B * H, L, L] scaled and masked."""
    if bucket.bias is None:
        return torch.bmm(query, key.transpose(1, 2)).mul_(scale)
    return torch.baddbmm(bucket.bias.to(query.dtype), query, key.transpose(1, 2), alpha=scale)


def _product(left: torch.Tensor, right: torch.Tensor, output: torch.Tensor, scale: float) -> None:
    """`output = scale * left @ right`, in place."""
    torch.baddbmm(output, left, right, beta=0, alpha=scale, out=output)
