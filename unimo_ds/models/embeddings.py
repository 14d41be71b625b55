"""Inputs of the encoder: text tokens and image regions, each summed and layer-normed on its own (unimo.md 2.3, 2.4).

Letters: N rows, D hidden size, F region feature size.
"""

from __future__ import annotations

import torch
from torch import nn

from unimo_ds.config import ModelConfig
from unimo_ds.models.layers import Linear


class TextEmbedding(nn.Module):
    """Word + learned position, then layer norm. No segment table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(
        self,
        token_ids_N: torch.Tensor,
        token_positions_N: torch.Tensor,
        addition_ND: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """addition_ND: [N, D] added to the sum, before the layer norm."""
        summed_ND = self.word(token_ids_N) + self.position(token_positions_N)
        if addition_ND is not None:
            summed_ND = summed_ND + addition_ND.to(summed_ND.dtype)
        embedded: torch.Tensor = self.norm(summed_ND)
        return embedded


class RegionEmbedding(nn.Module):
    """FC of the region's feature + FC of its location, then layer norm. No positions: the order of regions says nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.feature = Linear(config.region_feature_size, config.hidden_size)
        self.location = Linear(5, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, features_NF: torch.Tensor, boxes_N5: torch.Tensor) -> torch.Tensor:
        """features_NF: any floating dtype. boxes_N5: x1, y1, x2, y2, area as shares."""
        dtype = self.norm.weight.dtype
        if not len(features_NF):  # a batch without images may not know F
            features_NF = features_NF.new_zeros((0, self.feature.in_features))
        embedded: torch.Tensor = self.norm(self.feature(features_NF.to(dtype)) + self.location(boxes_N5.to(dtype)))
        return embedded
