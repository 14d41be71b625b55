"""Which configurations can run: bounds of every number, and what must hold between them."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

from unimo_ds.config import LossWeights, RunConfig
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError

_MOST_DRAWN = 1000
"""Of a pair's rewrites of one kind, or of its related items: no folder holds nearly as many, and a step is planned for all."""
_MOST_SAMPLES = 1_000_000
"""Of a step, which every rank plans whole."""
_MOST_SPAN_WORDS = 100_000
"""The chance of each length stands in a table."""
_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "model.num_layers": (1, math.inf),
    "model.num_image_layers": (0, math.inf),
    "model.num_heads": (1, math.inf),
    "model.hidden_size": (1, math.inf),
    "model.feed_forward_size": (1, math.inf),
    "model.vocabulary_size": (0, math.inf),
    "model.region_feature_size": (0, math.inf),
    "model.num_region_classes": (0, math.inf),
    "model.patch_columns": (0, math.inf),
    "model.max_positions": (3, math.inf),
    "model.layer_norm_epsilon": (0, 1),
    "model.initializer_range": (1e-6, math.inf),
    "model.hidden_dropout": (0, 0.95),
    "model.attention_dropout": (0, 0.95),
    "data.kind_weights.image": (0, math.inf),
    "data.kind_weights.text": (0, math.inf),
    "data.kind_weights.pair": (0, math.inf),
    "data.shuffle_window_shards": (1, math.inf),
    "data.max_text_tokens": (3, math.inf),
    "data.max_regions": (1, 2**31 - 1),
    "data.smallest_crop": (0.01, 1),
    "data.num_workers": (0, 1024),
    "data.prefetch_steps": (1, 1000),
    "data.max_bad_share": (0, 1),
    "data.cache_bytes": (0, math.inf),
    "batch.global_samples": (1, _MOST_SAMPLES),
    "batch.micro_batch_tokens": (1, math.inf),
    "masking.language_share": (0, 1),
    "masking.span_probability": (0.001, 1),
    "masking.max_span_words": (1, _MOST_SPAN_WORDS),
    "masking.mask_token_share": (0, 1),
    "masking.random_token_share": (0, 1),
    "masking.sequence_to_sequence_share": (0, 1),
    "masking.fragment_share": (0.001, 1),
    "masking.min_fragment_tokens": (1, math.inf),
    "masking.region_share": (0, 1),
    "masking.region_overlap": (0, 1),
    "contrast.positives": (0, _MOST_DRAWN),
    "contrast.sentence_negatives": (0, _MOST_DRAWN),
    "contrast.phrase_negatives": (0, _MOST_DRAWN),
    "contrast.word_negatives": (0, _MOST_DRAWN),
    "contrast.related_images": (0, _MOST_DRAWN),
    "contrast.related_texts": (0, _MOST_DRAWN),
    "contrast.group_pairs": (0, math.inf),
    "contrast.min_temperature": (1e-6, math.inf),
    **{f"losses.{field.name}": (0, math.inf) for field in dataclasses.fields(LossWeights)},
    "optimizer.peak_learning_rate": (0, math.inf),
    "optimizer.epsilon": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "schedule.total_steps": (1, math.inf),
    "schedule.warmup_steps": (0, math.inf),
    "engine.max_skipped_steps": (1, math.inf),
    "engine.hang_minutes": (0, 525_600),
    "engine.threads": (0, 4096),
    "spikes.deviations": (1, math.inf),
    "spikes.ratio": (1, math.inf),
    "spikes.warm_up_steps": (2, math.inf),
    "spikes.most_in_a_row": (0, math.inf),
    "spikes.max_rollbacks": (0, math.inf),
    "checkpoint.every_steps": (1, math.inf),
    "checkpoint.keep_last": (1, math.inf),
    "checkpoint.keep_every": (0, math.inf),
    "evaluation.every_steps": (0, math.inf),
    "evaluation.num_pairs": (1, math.inf),
    "logging.every_steps": (1, math.inf),
    "logging.num_pictures": (0, math.inf),
    "logging.num_embeddings": (0, math.inf),
}
"""Lowest and highest value of each number that has bounds of its own."""


def check(config: RunConfig) -> None:
    """Refuse a recipe that cannot run, before anything is loaded.

    Raises:
        UserError: naming the key and what it may be.
    """
    check_stored(config)
    if not config.run_dir:  # an unset variable of a script; the run would be written over the folder it was started in
        raise UserError("run_dir is empty; give --run-dir DIR")
    locations.check_local(config.run_dir)
    model, contrast, masking, weights = config.model, config.contrast, config.masking, config.data.kind_weights
    if config.data.max_text_tokens + 2 > model.max_positions:
        raise UserError(
            f"data.max_text_tokens={config.data.max_text_tokens} needs model.max_positions of at least "
            f"{config.data.max_text_tokens + 2} (position ids start at 2); it is {model.max_positions}"
        )
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise UserError(f"optimizer.betas={config.optimizer.betas} must each be at least 0 and below 1")
    first, last = config.logging.trace_steps
    if not 0 <= first <= last:
        raise UserError(f"logging.trace_steps={first},{last} must be a first step and a last one, or 0,0")
    if config.data.max_regions < model.num_patches:
        raise UserError(
            f"data.max_regions={config.data.max_regions} would cut images of model.region_tag_sizes={model.num_patches} patches; "
            f"set data.max_regions={model.num_patches}"
        )
    if masking.min_fragment_tokens > masking.max_fragment_tokens:
        raise UserError(
            f"masking.min_fragment_tokens={masking.min_fragment_tokens} is above "
            f"masking.max_fragment_tokens={masking.max_fragment_tokens}"
        )
    if masking.mask_token_share + masking.random_token_share > 1:
        raise UserError("masking.mask_token_share and masking.random_token_share together are above 1")
    if config.schedule.warmup_steps > config.schedule.total_steps:
        raise UserError(
            f"schedule.warmup_steps={config.schedule.warmup_steps} is above "
            f"schedule.total_steps={config.schedule.total_steps}; shorten it too, for example to a tenth of them"
        )
    if weights.image + weights.text + weights.pair == 0:
        raise UserError("data.kind_weights are all 0; give at least one kind a weight")
    losses = {field.name: getattr(config.losses, field.name) for field in dataclasses.fields(config.losses)}
    if not any(weight for name, weight in losses.items() if name != "contrastive" or contrast.enabled):
        raise UserError("losses.* of all objectives in use are 0, so nothing is trained; give at least one a weight")
    if contrast.enabled and weights.pair == 0:
        raise UserError(
            "contrast.enabled=true needs pairs, but data.kind_weights.pair=0; "
            "give pairs a weight or set contrast.enabled=false"
        )


def check_stored(config: RunConfig) -> None:
    """Refuse a configuration that no model can be made of: what is asked of one that lies beside weights.

    Raises:
        UserError: naming the key and what it may be.
    """
    check_bounds(config, _BOUNDS)
    model, contrast = config.model, config.contrast
    if model.hidden_size % model.num_heads:
        raise UserError(f"model.hidden_size={model.hidden_size} is not a multiple of model.num_heads={model.num_heads}")
    if any(size < 1 for size in model.region_tag_sizes):
        sizes = ",".join(map(str, model.region_tag_sizes))
        raise UserError(f"model.region_tag_sizes={sizes} must each be at least 1")
    # Where the size is open, both are still to come from the data.
    if model.num_image_layers and model.region_feature_size and not model.region_tag_sizes:
        raise UserError(
            f"model.num_image_layers={model.num_image_layers} needs images as numbered patches (`unimo prepare import "
            "--extractor patches`) and model.region_tag_sizes, their number; or set model.num_image_layers=0"
        )
    if model.patch_columns and model.num_patches and not model.patch_grid:
        raise UserError(
            f"model.patch_columns={model.patch_columns} does not divide the patches of an image, model.region_tag_sizes="
            f"{model.num_patches}; set it to how many lie in a row, or to 0 where they make a square"
        )
    if not contrast.min_temperature <= contrast.temperature <= contrast.max_temperature:
        raise UserError(
            f"contrast.temperature={contrast.temperature} must lie between contrast.min_temperature="
            f"{contrast.min_temperature} and contrast.max_temperature={contrast.max_temperature}"
        )


def check_bounds(settings: Any, bounds: Mapping[str, tuple[float, float]], *, prefix: str = "") -> None:
    """
    prefix: of the keys in messages.

    Raises:
        UserError: naming the key and what it may be.
    """
    for key, (low, high) in bounds.items():
        value = operator.attrgetter(key)(settings)
        if not low <= value <= high:
            limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise UserError(f"{prefix}{key}={value} must be {limit}")
