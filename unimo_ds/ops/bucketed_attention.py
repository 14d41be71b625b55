"""Packed attention in plain PyTorch: batched products over buckets of sequences (`buckets.py`), in one autograd node.
Gradients of the copies of shared prefixes' keys and values are summed.

Letters as in `buckets.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from unimo_ds.ops.buckets import Bucket, Plan, plan_of
from unimo_ds.ops.layout import Layout
from unimo_ds.ops.linear import widens
from unimo_ds.ops.own_precision import own_precision
from unimo_ds.utils import seed
from unimo_ds.utils.differentiable_once import differentiable_once


def bucketed_attention(
    query_key_value_T3HD: torch.Tensor, layout: Layout, *, probability: float = 0.0, site: int = 0
) -> torch.Tensor:
    """`packed_attention` in buckets, [T, H, D]. Computes in fp32 if `ops.linear.widens` is true for the input."""
    dtype = query_key_value_T3HD.dtype
    wide = query_key_value_T3HD.float() if widens(query_key_value_T3HD) else query_key_value_T3HD
    result: torch.Tensor = _BucketedAttention.apply(wide, layout, probability, site)  # type: ignore[no-untyped-call]
    return result.to(dtype)


class _BucketedAttention(torch.autograd.Function):
    """Forward saves gathered inputs, probabilities and dropout masks; backward is the textbook one, bucket by bucket."""

    @staticmethod
    @own_precision
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
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        plan: Plan = ctx.plan
        inputs, *saved = ctx.saved_tensors
        num_positions, num_heads, head_size = gradients[0].shape
        output_gradient = gradients[0].reshape(-1, head_size).index_select(0, plan.gather_one)
        # Padded queries are copies of row 0: their gradient must not reach keys and values.
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
    """Views of a bucket's queries [B * H, L, D], keys and values [B * H, K, D] in rows with the layout of `gather_in`."""
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
