"""Cached decoding: the prefix is encoded once, packed; then each step computes only its new positions.

Training (paper section 2.3) lays out `prefix, [CLS] t1 ... tn [SEP]`: attention is bidirectional within the prefix (regions and
source text), each target position sees the prefix and earlier targets, and a token's hidden state predicts the next token. So
a target's keys and values never change once computed, and the prefix's are the same for every beam.

Letters: B prompts, K rows per prompt (beams or samples), R = B * K rows, H heads, D head size, P positions of the longest
prefix, n new positions, t target positions so far, T stream positions, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from unimo_ds.data.schema import FIRST_POSITION, PackedBatch
from unimo_ds.models.layers import EncoderLayer
from unimo_ds.models.unimo import Unimo, layout_of


@dataclass(frozen=True)
class LayerPrefix:
    """Keys and values of the prefixes in one layer, padded on the right to the longest."""

    keys_BHPD: torch.Tensor
    values_BHPD: torch.Tensor


class PrefixCache(DynamicCache):
    """Keys and values: those of targets per row, in transformers' own cache, and those of prefixes per prompt.

    Beams of a prompt share its prefix, so reordering beams moves only the targets.
    """

    def __init__(self, layers: list[LayerPrefix], bias_B1P: torch.Tensor | None) -> None:
        """bias_B1P: [B, 1, P] fp32, 0 on a prefix and -inf on its padding; None: all have the same length."""
        super().__init__()
        self.prefixes = layers
        self.bias_B1P = bias_B1P

    @property
    def num_prompts(self) -> int:
        return len(self.prefixes[0].keys_BHPD)

    def forget_targets(self) -> None:
        """Keep only the prefixes."""
        self.layers.clear()


def encode_prefixes(model: Unimo, batch: PackedBatch, text_addition_ND: torch.Tensor | None = None) -> PrefixCache:
    """Run the prefixes (one sequence of the stream each) through the layers and keep their keys and values.

    The last layer computes only these, since no head reads a prefix. text_addition_ND: as in `Unimo.forward`.

    Raises:
        ValueError: no sequence, or one that is not bidirectional over its whole length.
    """
    lengths = batch.sequence_starts[1:] - batch.sequence_starts[:-1]
    if not len(lengths) or not torch.equal(lengths, batch.prefix_lengths):
        raise ValueError("prefixes must be one or more sequences that see themselves whole")
    layout = layout_of(batch)
    hidden_TE = model.embed(batch, layout, text_addition_ND)
    slots_T = batch.position_sequence.long() * batch.longest + batch.position_offset
    kept = []
    for layer in model.layers:
        assert isinstance(layer, EncoderLayer)
        projected_T3HD = layer.attention.project(hidden_TE)
        kept.append(
            LayerPrefix(*(_padded(projected_T3HD[:, part], slots_T, len(lengths), batch.longest) for part in (1, 2)))
        )
        if len(kept) < len(model.layers):
            attended = layer.attention.attend(projected_T3HD, layout)
            hidden_TE = layer.after_attention(attended, hidden_TE, layout.position_keys)
    return PrefixCache(kept, _padding_bias(lengths, batch.longest))


def _padded(rows_THD: torch.Tensor, slots_T: torch.Tensor, num_prompts: int, longest: int) -> torch.Tensor:
    """[B, H, P, D]"""
    _, num_heads, size = rows_THD.shape
    padded = rows_THD.new_zeros((num_prompts * longest, num_heads, size)).index_copy_(0, slots_T, rows_THD)
    return padded.view(num_prompts, longest, num_heads, size).transpose(1, 2).contiguous()


def _padding_bias(lengths_B: torch.Tensor, longest: int) -> torch.Tensor | None:
    is_padding = torch.arange(longest, device=lengths_B.device) >= lengths_B[:, None]
    if not bool(is_padding.any()):
        return None
    bias = torch.zeros(is_padding.shape, device=lengths_B.device).masked_fill_(is_padding, -torch.inf)
    return bias[:, None]


def decode(model: Unimo, token_ids_Rn: torch.Tensor, cache: PrefixCache) -> torch.Tensor:
    """Hidden states [R, n, E] of n new target tokens per row; their keys and values are added to the cache.

    token_ids_Rn: int64; those of the first call start with [CLS]. Rows of one prompt are adjacent.

    Raises:
        ValueError: more target positions than the model's position table has.
    """
    num_rows, num_new = token_ids_Rn.shape
    start = FIRST_POSITION + cache.get_seq_length()
    if start + num_new > model.config.max_positions:
        raise ValueError(f"target position {start + num_new - 1} is outside of {model.config.max_positions} positions")
    positions_n = torch.arange(start, start + num_new, device=token_ids_Rn.device)
    hidden: torch.Tensor = model.text_embedding(token_ids_Rn.reshape(-1), positions_n.repeat(num_rows))
    no_keys = hidden.new_zeros(0, dtype=torch.int32)  # dropout is off
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, EncoderLayer)
        projected = layer.attention.project(hidden)
        parts = projected.view(num_rows, num_new, *projected.shape[1:]).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        keys, values = cache.update(key, value, number)
        attended_RHnD = prefix_attention(query, keys, values, cache.prefixes[number], cache.bias_B1P)
        attended = attended_RHnD.transpose(1, 2).reshape(num_rows * num_new, -1)
        hidden = layer.after_attention(layer.attention.output(attended), hidden, no_keys)
    return hidden.view(num_rows, num_new, -1)


def prefix_attention(
    query_RHnD: torch.Tensor,
    keys_RHtD: torch.Tensor,
    values_RHtD: torch.Tensor,
    prefix: LayerPrefix,
    bias_B1P: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of new target positions to their prompt's prefix and the targets up to themselves: [R, H, n, D].

    One softmax runs over both parts. The prefix's keys are read once for all rows of a prompt.
    """
    num_rows, num_heads, num_new, size = query_RHnD.shape
    num_targets, (num_prompts, _, longest, _) = keys_RHtD.shape[2], prefix.keys_BHPD.shape
    per_prompt = num_rows // num_prompts

    def by_prompt(tensor: torch.Tensor) -> torch.Tensor:
        """[R, H, n, x] as [B * H, K * n, x]."""
        split = tensor.view(num_prompts, per_prompt, *tensor.shape[1:]).transpose(1, 2)
        return split.reshape(num_prompts * num_heads, per_prompt * num_new, -1)

    def by_row(tensor: torch.Tensor) -> torch.Tensor:
        """Inverse of `by_prompt`."""
        split = tensor.view(num_prompts, num_heads, per_prompt, num_new, -1).transpose(1, 2)
        return split.reshape(num_rows, num_heads, num_new, -1)

    query_RHnD = query_RHnD * size**-0.5
    wide = torch.promote_types(query_RHnD.dtype, torch.float32)
    to_prefix = (by_prompt(query_RHnD) @ prefix.keys_BHPD.flatten(0, 1).transpose(1, 2)).to(wide)
    if bias_B1P is not None:
        to_prefix = (to_prefix.view(num_prompts, num_heads, -1, longest) + bias_B1P[:, None]).view_as(to_prefix)
    to_targets = (query_RHnD @ keys_RHtD.transpose(2, 3)).to(wide)
    if num_new > 1:
        offsets = torch.arange(num_targets, device=query_RHnD.device)
        to_targets = to_targets.masked_fill(offsets > offsets[-num_new:, None], -torch.inf)
    weights = torch.cat([by_row(to_prefix), to_targets], dim=-1).softmax(-1).to(query_RHnD.dtype)
    on_prefix, on_targets = torch.split(weights, [longest, num_targets], dim=-1)
    return by_row(by_prompt(on_prefix) @ prefix.values_BHPD.flatten(0, 1)) + on_targets @ values_RHtD
