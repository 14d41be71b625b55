"""Cost of a model, computed from its sizes: parameters, and floating-point operations of a stream. Nothing is allocated.

Letters: T stream positions, D hidden size, F feed-forward size, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass

from unimo_ds.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by part."""

    text_embedding: int
    region_embedding: int
    image_layers: int
    layers: int
    heads: int
    """Language head (the tied word table is counted once, above), poolers, region heads, temperature."""

    @property
    def encoder(self) -> int:
        """Embeddings, image inputs and layers: the model size that UNIMO's papers give."""
        return self.text_embedding + self.region_embedding + self.image_layers + self.layers

    @property
    def total(self) -> int:
        return self.encoder + self.heads


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Parameters of `Unimo(config)`."""
    size, wide, norm = config.hidden_size, config.feed_forward_size, 2 * config.hidden_size
    layer = _linear(size, 4 * size) + _linear(size, wide) + _linear(wide, size) + 2 * norm
    language_head = _linear(size, size) + norm + config.vocabulary_size
    regions = _linear(config.region_feature_size, size) + sum(rows + 1 for rows in config.region_tag_sizes) * size
    if is_encoded := config.num_image_layers > 0:
        image_layers = regions + size + config.num_image_layers * layer + norm
    return ParameterCount(
        text_embedding=(config.vocabulary_size + config.max_positions) * size + norm,
        region_embedding=(_linear(size, size) if is_encoded else regions) + _linear(5, size) + norm,
        image_layers=image_layers if is_encoded else 0,
        layers=config.num_layers * layer,
        heads=language_head
        + 2 * _linear(size, size)
        + _linear(size, config.region_feature_size)
        + _linear(size, config.num_region_classes)
        + 1,
    )


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


@dataclass(frozen=True)
class StreamShape:
    """Sizes of a packed stream that determine its cost."""

    num_positions: int
    sum_squared_lengths: int
    """Attention scores: sum over sequences of length times attended length (equal unless prefixes are shared)."""
    num_regions: int
    """Projected image inputs, [IMG] included; an image in several sequences counts once."""
    sum_squared_images: int
    """Attention scores of image layers: sum over these images of their squared number of inputs."""
    num_language: int
    """Positions that predict a token."""
    num_masked_regions: int
    num_pooled: int
    """[IMG] and [CLS] vectors."""


def forward_flops(config: ModelConfig, shape: StreamShape) -> int:
    """Floating-point operations of the matrix products of one forward pass over a stream (a multiply-add counts as two).

    The last layer's output projection and feed-forward part are counted only for the positions that heads read, as computed.
    Attention is counted in full, although causal parts need about half.
    """
    size, wide, num_image_layers = config.hidden_size, config.feed_forward_size, config.num_image_layers
    num_read = shape.num_language + shape.num_masked_regions + shape.num_pooled
    rows_of_layers = (config.num_layers - 1) * shape.num_positions + num_read
    products = (
        config.num_layers * shape.num_positions * 3 * size * size
        + rows_of_layers * (size * size + 2 * size * wide)
        + config.num_layers * 2 * shape.sum_squared_lengths * size
        + shape.num_regions * (config.region_feature_size + 5) * size
        + (num_image_layers > 0) * shape.num_regions * size * size
        + num_image_layers * shape.num_regions * (4 * size * size + 2 * size * wide)
        + num_image_layers * 2 * shape.sum_squared_images * size
        + shape.num_language * (size + config.vocabulary_size) * size
        + shape.num_masked_regions * (config.region_feature_size + config.num_region_classes) * size
        + shape.num_pooled * size * size
    )
    return 2 * products


def training_flops(config: ModelConfig, shape: StreamShape) -> int:
    """Forward and backward: each product has two gradients. Recomputation (activation checkpointing) is not counted."""
    return 3 * forward_flops(config, shape)
