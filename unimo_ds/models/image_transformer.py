"""A Vision Transformer over the patches of all images of a batch, trained end to end with the rest, from pixels.

UNIMO reads regions from a fixed detector; UNIMO-2 (Li et al. 2022) instead trains a Vision Transformer (Dosovitskiy et al.
2021): pre-norm, without dropout. Here its outputs replace region features; everything after that is unchanged. Images are
packed like sequences, without padding, with any number of patches; an image in several sequences is encoded once.

Letters: N rows ([IMG] and the patches of all images), M images, D hidden size, F size of a patch, G tags of a patch.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unimo_ds.config import ModelConfig
from unimo_ds.models.embeddings import TagTables
from unimo_ds.models.layers import Linear, LinearGelu, SelfAttention
from unimo_ds.ops.layout import Layout

_EPSILON = 1e-12
"""Of layer norms, as in the released Vision Transformers and in UNIMO-2."""


class PreNormLayer(nn.Module):
    """Transformer layer with layer norms before attention and feed-forward."""

    def __init__(self, config: ModelConfig, *, path: str) -> None:
        super().__init__()
        size, wide = config.hidden_size, config.feed_forward_size
        self.attention_norm = nn.LayerNorm(size, eps=_EPSILON)
        self.attention = SelfAttention(dataclasses.replace(config, attention_dropout=0.0), site=0, path=path)
        self.feed_forward_norm = nn.LayerNorm(size, eps=_EPSILON)
        self.feed_forward_in = LinearGelu(size, wide)
        self.feed_forward_out = Linear(wide, size)

    def forward(self, hidden_ND: torch.Tensor, layout: Layout) -> torch.Tensor:
        hidden_ND = hidden_ND + self.attention(self.attention_norm(hidden_ND), layout)
        expanded: torch.Tensor = self.feed_forward_in(self.feed_forward_norm(hidden_ND))
        result: torch.Tensor = hidden_ND + self.feed_forward_out(expanded)
        return result


class ImageTransformer(nn.Module):
    """Patch projection + an embedding per tag (the patch's number), a learned vector for [IMG], then the layers.

    A masked patch is all zeros (mid-grey) and keeps its number.
    """

    def __init__(self, config: ModelConfig, *, path: str) -> None:
        super().__init__()
        self.patch = Linear(config.region_feature_size, config.hidden_size)
        self.tags = TagTables(config.region_tag_sizes, config.hidden_size)
        self.image = nn.Embedding(1, config.hidden_size)
        self.layers = nn.ModuleList(PreNormLayer(config, path=path) for _ in range(config.num_image_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=_EPSILON)

    def forward(
        self,
        patches_NF: torch.Tensor,
        tags_NG: torch.Tensor,
        image_starts_M: torch.Tensor,
        *,
        longest: int,
        activation_checkpointing: bool = False,
    ) -> torch.Tensor:
        """[N, D] hidden states of the last layer, normalised.

        patches_NF: any floating dtype; the first row of each image, [IMG], is ignored. image_starts_M: [M + 1] int32
        offsets of the images among the rows. longest: rows of the longest image.
        """
        dtype = self.norm.weight.dtype
        if not len(patches_NF):  # F and G may be unknown in a batch without images
            patches_NF = patches_NF.new_zeros((0, self.patch.in_features))
            tags_NG = tags_NG.new_zeros((0, len(self.tags)))
        layout = image_layout(image_starts_M, num_rows=len(patches_NF), longest=longest)
        embedded_ND = self.patch(patches_NF.to(dtype)) + self.tags(tags_NG.T)
        image = self.image(torch.zeros_like(image_starts_M[1:]))
        hidden_ND = embedded_ND.index_copy(0, image_starts_M[:-1].long(), image.to(embedded_ND.dtype))
        for layer in self.layers:
            if activation_checkpointing and torch.is_grad_enabled():
                hidden_ND = checkpoint(layer, hidden_ND, layout, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden_ND = layer(hidden_ND, layout)
        result: torch.Tensor = self.norm(hidden_ND)
        return result


def image_layout(image_starts_M: torch.Tensor, *, num_rows: int, longest: int) -> Layout:
    """Images as sequences in which all rows see each other, without dropout. Does not wait for the device."""
    rows = torch.arange(num_rows, device=image_starts_M.device, dtype=torch.int32)
    return Layout(
        sequence_starts=image_starts_M,
        prefix_lengths=image_starts_M.diff(),
        position_sequence=torch.bucketize(rows, image_starts_M[1:], right=True, out_int32=True),
        position_keys=torch.zeros_like(rows),
        longest=longest,
    )
