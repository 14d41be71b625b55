"""Inputs of the encoder: text tokens and image regions, each summed and layer-normed separately, as in the release.

Letters: N rows, D hidden size, F region feature size, G tags of a token or region.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import NO_TAG
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
    """FC of the region's feature + FC of its location, then layer norm. No positions: the order of regions has no meaning.

    If the data have region tags, their embeddings are added to the sum. With an image Transformer, the tag tables are there
    instead, and features are its hidden states.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        is_encoded = config.num_image_layers > 0
        self.feature = Linear(config.hidden_size if is_encoded else config.region_feature_size, config.hidden_size)
        self.location = Linear(5, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.tags = TagTables(() if is_encoded else config.region_tag_sizes, config.hidden_size)

    def forward(self, features_NF: torch.Tensor, boxes_N5: torch.Tensor, tags_NG: torch.Tensor) -> torch.Tensor:
        """features_NF: any floating dtype. boxes_N5: x1, y1, x2, y2, area, as fractions of the image.

        Raises:
            ValueError: the number of tags is not that of tables.
        """
        dtype = self.norm.weight.dtype
        if not len(features_NF):  # F and G may be unknown in a batch without images
            if features_NF.shape[1] != self.feature.in_features:
                features_NF = features_NF.new_zeros((0, self.feature.in_features))
            tags_NG = tags_NG.new_zeros((0, len(self.tags)))
        if tags_NG.shape[1] != len(self.tags):
            raise ValueError(f"regions have {tags_NG.shape[1]} tags, the model has tables for {len(self.tags)}")
        summed_ND = self.feature(features_NF.to(dtype)) + self.location(boxes_N5.to(dtype))
        if len(self.tags):
            summed_ND = summed_ND + self.tags(tags_NG.T)
        embedded: torch.Tensor = self.norm(summed_ND)
        return embedded


class TagTables(nn.ModuleList):
    """One table per tag of text tokens or regions; its embeddings are added to theirs. `NO_TAG` adds nothing."""

    def __init__(self, sizes: Sequence[int], hidden_size: int) -> None:
        """sizes: number of values of each tag."""
        # One more row, always zero, for NO_TAG.
        super().__init__(nn.Embedding(size + 1, hidden_size, padding_idx=size) for size in sizes)

    def forward(self, tags_GN: torch.Tensor) -> torch.Tensor:
        """[N, D], the sum over the tags, at least one. May raise IndexError: a number without a row."""
        embedded = []
        for table, tags_N in zip(self, tags_GN, strict=True):
            assert isinstance(table, nn.Embedding)
            size = table.num_embeddings - 1
            # Too large a number must not select the row of NO_TAG.
            embedded.append(table(torch.where(tags_N == NO_TAG, size, tags_N + (tags_N >= size))))
        return torch.stack(embedded).sum(0)
