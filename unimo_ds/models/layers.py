"""Modules of the encoder: each owns its weights and calls one op.

Letters: T stream positions, H heads, D hidden size.
"""

from __future__ import annotations

import torch
from torch import nn

from unimo_ds.config import ModelConfig
from unimo_ds.ops.attention import packed_attention
from unimo_ds.ops.dropout_norm import dropout_add_layer_norm
from unimo_ds.ops.layout import Layout
from unimo_ds.ops.linear import linear
from unimo_ds.ops.linear_gelu import linear_gelu

SITES_PER_LAYER = 64
"""Dropout sites are numbered layer * 64 + index in the layer; the embedding's is 0, the first layer's start at 64."""


class Linear(nn.Linear):
    """`nn.Linear` through `ops.linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class LinearGelu(nn.Linear):
    """`gelu(nn.Linear)` in one op."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_gelu(x, self.weight, self.bias)


class ResidualNorm(nn.Module):
    """`layer_norm(residual + dropout(x))`."""

    def __init__(self, size: int, *, epsilon: float, dropout: float, site: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.epsilon, self.dropout, self.site = epsilon, dropout, site

    def forward(self, x_TD: torch.Tensor, residual_TD: torch.Tensor, position_keys_T: torch.Tensor) -> torch.Tensor:
        return dropout_add_layer_norm(
            x_TD,
            residual_TD,
            self.weight,
            self.bias,
            position_keys_T,
            probability=self.dropout if self.training else 0.0,
            site=self.site,
            epsilon=self.epsilon,
        )


class SelfAttention(nn.Module):
    """Projections around packed attention."""

    def __init__(self, config: ModelConfig, *, site: int, path: str) -> None:
        super().__init__()
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = Linear(config.hidden_size, config.hidden_size)
        self.num_heads, self.dropout, self.site, self.path = config.num_heads, config.attention_dropout, site, path

    def forward(self, hidden_TD: torch.Tensor, layout: Layout, rows_N: torch.Tensor | None = None) -> torch.Tensor:
        """rows_N: [N] int64, stream positions to return; None: all."""
        return self.attend(self.project(hidden_TD), layout, rows_N)

    def project(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, [T, 3, H, D / H]."""
        num_positions, size = hidden_TD.shape
        projected: torch.Tensor = self.query_key_value(hidden_TD)
        return projected.view(num_positions, 3, self.num_heads, size // self.num_heads)

    def attend(self, projected_T3HD: torch.Tensor, layout: Layout, rows_N: torch.Tensor | None = None) -> torch.Tensor:
        """The rest of `forward`, from the output of `project`."""
        attended = packed_attention(
            projected_T3HD, layout, probability=self.dropout if self.training else 0.0, site=self.site, path=self.path
        ).flatten(1)
        result: torch.Tensor = self.output(attended if rows_N is None else attended.index_select(0, rows_N))
        return result


class EncoderLayer(nn.Module):
    """Post-norm Transformer layer: attention, then feed-forward, each followed by dropout, residual and layer norm."""

    def __init__(self, config: ModelConfig, *, number: int, path: str) -> None:
        super().__init__()
        site = (number + 1) * SITES_PER_LAYER

        def norm(index: int) -> ResidualNorm:
            return ResidualNorm(
                config.hidden_size,
                epsilon=config.layer_norm_epsilon,
                dropout=config.hidden_dropout,
                site=site + index,
            )

        self.attention = SelfAttention(config, site=site, path=path)
        self.attention_norm = norm(1)
        self.feed_forward_in = LinearGelu(config.hidden_size, config.feed_forward_size)
        self.feed_forward_out = Linear(config.feed_forward_size, config.hidden_size)
        self.feed_forward_norm = norm(2)

    def forward(self, hidden_TD: torch.Tensor, layout: Layout, rows_N: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states [T, D], or [N, D] of only the stream positions `rows_N`: only they pass the feed-forward part."""
        attended = self.attention(hidden_TD, layout, rows_N)
        keys = layout.position_keys
        if rows_N is not None:
            hidden_TD, keys = hidden_TD.index_select(0, rows_N), keys.index_select(0, rows_N)
        return self.after_attention(attended, hidden_TD, keys)

    def after_attention(
        self, attended_TD: torch.Tensor, hidden_TD: torch.Tensor, position_keys_T: torch.Tensor
    ) -> torch.Tensor:
        """Both residuals, both layer norms and the feed-forward part; hidden_TD: the layer's input at the same positions."""
        hidden_TD = self.attention_norm(attended_TD, hidden_TD, position_keys_T)
        expanded = self.feed_forward_in(hidden_TD)
        result: torch.Tensor = self.feed_forward_norm(self.feed_forward_out(expanded), hidden_TD, position_keys_T)
        return result
