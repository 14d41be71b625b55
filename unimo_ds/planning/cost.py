"""Cost of a sample: counted from the index of a run's data, or assumed from its recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import regions_left_out
from unimo_ds.data.schema import SequenceRole
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_plan import order_of
from unimo_ds.models.accounting import StreamShape

_COUNTED_SAMPLES = 2048
_READ_SAMPLES = 48
# Assumed if no data is given.
_CAPTION_TOKENS, _TEXT_SHARE, _REWRITES_BYTES, _JPEG_BYTES = 14, 0.75, 8_000, 60_000
_OVERLAP_GROWTH = 2.0
"""Masked regions per anchor, itself included: neighbours that overlap it are masked too."""


@dataclass(frozen=True)
class SampleCost:
    """Averages per sample of the global stream, with pairs, images and texts in the recipe's ratio."""

    positions: float
    squared_lengths: float
    clean_positions: float = 0.0
    clean_squared_lengths: float = 0.0
    """Of the two above, the part that a rehearsal encodes (`engine/rehearsal.py`)."""
    regions: float = 0.0
    squared_images: float = 0.0
    language: float = 0.0
    masked_regions: float = 0.0
    pooled: float = 0.0
    bytes: float = 0.0
    """Read from storage."""

    def shape(self, num_samples: int) -> StreamShape:
        """The stream of `num_samples` samples."""
        return StreamShape(
            num_positions=round(self.positions * num_samples),
            sum_squared_lengths=round(self.squared_lengths * num_samples),
            num_regions=round(self.regions * num_samples),
            sum_squared_images=round(self.squared_images * num_samples),
            num_language=round(self.language * num_samples),
            num_masked_regions=round(self.masked_regions * num_samples),
            num_pooled=round(self.pooled * num_samples),
        )

    def rehearsed_shape(self, num_samples: int) -> StreamShape:
        """The same without corrupted sequences and their targets."""
        return dataclasses.replace(
            self.shape(num_samples),
            num_positions=round(self.clean_positions * num_samples),
            sum_squared_lengths=round(self.clean_squared_lengths * num_samples),
            num_language=0,
            num_masked_regions=0,
        )


def counted_cost(config: RunConfig, corpus: Corpus) -> tuple[SampleCost, list[str]]:
    """Mean over the first samples of the run's own order, from the index; bytes by reading a few of them."""
    positions = np.arange(_COUNTED_SAMPLES)
    samples = order_of(corpus, config).samples_at(positions)
    chosen = select_step(corpus, samples, positions, config)
    lengths = chosen.lengths.astype(np.float64)
    image_lengths = np.where(
        chosen.images >= 0, 1 + np.minimum(corpus.num_regions[chosen.images], config.data.max_regions), 0
    )
    corrupted = chosen.roles == SequenceRole.CORRUPTED
    clean = ~corrupted
    squares = lengths * (lengths + chosen.shared_lengths)
    before = corpus.bytes_read
    for row in range(_READ_SAMPLES):
        # A pair's own image is stored with it; a related image is another sample to be read.
        for sample in {int(samples[row]), *(one.image for one in chosen[row].sequences if one.image >= 0)}:
            corpus.read(sample)
    cost = SampleCost(
        positions=float(lengths.sum() / len(samples)),
        squared_lengths=float(squares.sum() / len(samples)),
        clean_positions=float(lengths[clean].sum() / len(samples)),
        clean_squared_lengths=float(squares[clean].sum() / len(samples)),
        regions=float(chosen.encoded_images.sum() / len(samples)),
        squared_images=float((chosen.encoded_images.astype(np.float64) ** 2).sum() / len(samples)),
        language=float(chosen.predicted.sum() / len(samples)),
        masked_regions=_masked_regions(config, float(image_lengths[corrupted].sum() / len(samples))),
        pooled=float(((image_lengths > 0)[clean].sum() + (lengths > image_lengths)[clean].sum()) / len(samples)),
        bytes=(corpus.bytes_read - before) / _READ_SAMPLES,
    )
    counted = f"sequences counted over the first {_COUNTED_SAMPLES:,} samples of the run's order"
    return cost, [counted, *regions_left_out(corpus, config)]


def assumed_cost(config: RunConfig) -> tuple[SampleCost, list[str]]:
    """From images of full size, short captions and texts near the limit."""
    weights, contrast, masking = config.data.kind_weights, config.contrast, config.masking
    total = weights.image + weights.text + weights.pair
    pair, image_only, text_only = weights.pair / total, weights.image / total, weights.text / total
    image = 1.0 + config.data.max_regions
    caption = _CAPTION_TOKENS + 2.0
    text = max(caption, _TEXT_SHARE * config.data.max_text_tokens)
    negatives = contrast.sentence_negatives + contrast.phrase_negatives + contrast.word_negatives
    num_joint = 1 + contrast.positives + negatives if contrast.enabled and contrast.encodes_jointly else 0
    num_images = 1 + contrast.related_images if contrast.enabled else 0
    num_texts = 1 + contrast.related_texts if contrast.enabled else 0
    if contrast.enabled and contrast.encodes_rewrites_alone:
        num_texts += contrast.positives + negatives
    # Number, length, and positions that each position attends to.
    is_shared = contrast.joint_encoding == "shared_image"
    clean = (
        (pair * num_joint, caption if is_shared else image + caption, image + caption),
        (pair * num_images, image, image),
        (pair * num_texts, caption, caption),
    )
    corrupted = (
        (pair, image + caption, image + caption),
        (image_only, image, image),
        (text_only, text, text),
    )
    sequences = (*clean, *corrupted)
    joint_images = 0 if is_shared else num_joint
    share = (
        masking.sequence_to_sequence_share * masking.fragment_share
        + (1 - masking.sequence_to_sequence_share) * masking.language_share
    )
    feature_bytes = config.data.max_regions * (config.model.region_feature_size * 2 + 16 + 4 * 6)
    if config.model.num_image_layers:
        feature_bytes = _JPEG_BYTES
    cost = SampleCost(
        positions=sum(count * length for count, length, _ in sequences),
        squared_lengths=sum(count * length * attended for count, length, attended in sequences),
        clean_positions=sum(count * length for count, length, _ in clean),
        clean_squared_lengths=sum(count * length * attended for count, length, attended in clean),
        regions=image * (pair * (1 + num_images) + image_only),
        squared_images=image * image * (pair * (1 + num_images) + image_only),
        language=share * (pair * caption + text_only * text),
        masked_regions=_masked_regions(config, image * (pair + image_only)),
        pooled=pair * (joint_images + num_joint + num_images + num_texts),
        bytes=feature_bytes * (pair * (1 + (contrast.related_images if contrast.enabled else 0)) + image_only)
        + _REWRITES_BYTES * pair
        + 5 * text * text_only,
    )
    return cost, [
        f"captions of {_CAPTION_TOKENS} tokens, images of {config.data.max_regions} regions"
        + (f" in JPEGs of {_JPEG_BYTES // 1000} KB" if config.model.num_image_layers else "")
        + f", texts of {text:.0f} tokens (give --data to count them)"
    ]


def _masked_regions(config: RunConfig, regions: float) -> float:
    return min(regions, regions * config.masking.region_share * _OVERLAP_GROWTH)
