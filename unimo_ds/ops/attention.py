"""Self-attention over a packed stream: no padding in the input, prefix masks, dropout keyed by (seed, offset, head, column).

A query at offset i of a sequence with prefix length p sees key j of the same sequence if j < p or j <= i. A sequence that shares
another's prefix (`Layout.prefix_of`) also sees that prefix: its positions count as the columns before the sequence's own. The
shared prefix sees nothing of the sequences that share it.
Paths: `native` (the CUDA kernels: fp16 or bf16, head size 64), `bucketed` (sequences of similar length padded together, batched
products, one autograd node for the op), `reference` (a loop over sequences, differentiated by autograd).

Letters: T stream positions, H heads, D head size, S sequences, B sequences of a bucket, L padded length of a bucket.
"""

from __future__ import annotations

import math

import torch

from unimo_ds.ops.bucketed_attention import bucketed_attention
from unimo_ds.ops.layout import Layout
from unimo_ds.ops.native import attention as native
from unimo_ds.ops.paths import Path, choose
from unimo_ds.utils import seed


def packed_attention(
    query_key_value_T3HD: torch.Tensor,
    layout: Layout,
    *,
    probability: float = 0.0,
    site: int = 0,
    path: str = "auto",
) -> torch.Tensor:
    """`dropout(softmax(q k^T / sqrt(D) + mask)) v` within each sequence, [T, H, D].

    query_key_value_T3HD: [T, 3, H, D] floating, the output of one projection. probability: of dropout on the attention
    probabilities. site: number of this dropout in the model. T = 0 is allowed. path: `native` and `auto` compile the kernels on
    first use if they are not built yet; if that fails, `auto` takes the next path.

    Raises:
        UserError: unknown path, or one that cannot run on this input.
    """
    run = choose("packed_attention", path, _PATHS, query_key_value_T3HD)
    return run(query_key_value_T3HD, layout, probability=probability, site=site)


def sequence_mask(length: int, prefix: int, *, device: torch.device | None = None) -> torch.Tensor:
    """[length, length] bool, True where query (row) sees key (column)."""
    offsets = torch.arange(length, device=device)
    return (offsets < prefix) | (offsets <= offsets.unsqueeze(-1))


def attention_reference(
    query_key_value_T3HD: torch.Tensor, layout: Layout, *, probability: float = 0.0, site: int = 0
) -> torch.Tensor:
    """The definition, one sequence at a time. [T, H, D]."""
    _, _, num_heads, head_size = query_key_value_T3HD.shape
    keys_TH = seed.head_keys(seed.row_keys(layout.position_keys, site), num_heads)
    starts, prefixes = layout.sequence_starts.tolist(), layout.prefix_lengths.tolist()
    owners = [-1] * len(prefixes) if layout.prefix_of is None else layout.prefix_of.tolist()
    outputs = [query_key_value_T3HD[:0, 0]]
    for start, stop, prefix, owner in zip(starts[:-1], starts[1:], prefixes, owners, strict=True):
        query, key, value = query_key_value_T3HD[start:stop].permute(1, 2, 0, 3)  # each [H, L, D]
        hidden = ~sequence_mask(stop - start, prefix, device=query.device)
        if owner >= 0:
            shared = query_key_value_T3HD[starts[owner] : starts[owner] + prefixes[owner]]
            _, shared_key, shared_value = shared.permute(1, 2, 0, 3)
            key, value = torch.cat((shared_key, key), 1), torch.cat((shared_value, value), 1)
            hidden = torch.cat((hidden.new_zeros(stop - start, prefixes[owner]), hidden), 1)
        scores = query @ key.transpose(1, 2) / math.sqrt(head_size)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        if probability:
            keep = seed.keep_mask(keys_TH[start:stop], key.shape[1], probability, dtype=weights.dtype)
            weights = weights * keep.transpose(0, 1) * seed.keep_scale(probability)
        outputs.append((weights @ value).transpose(0, 1))
    return torch.cat(outputs)


_PATHS = {
    "native": Path(native.attention, native.refusal),
    "bucketed": Path(bucketed_attention),
    "reference": Path(attention_reference),
}
