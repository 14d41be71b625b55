"""Checks that a configuration can run: conditions between its values, beside the interval of each (`utils/intervals.py`)."""

from __future__ import annotations

import dataclasses

from unimo_ds.config import RunConfig, ScheduleConfig
from unimo_ds.utils import intervals, locations
from unimo_ds.utils.errors import UserError


def check(config: RunConfig) -> None:
    """Refuse a recipe that cannot run, before anything is loaded.

    Raises:
        UserError: names the key and its allowed values.
    """
    check_stored(config)
    if not config.run_dir:  # an unset variable in a script; the run would be written into the current folder
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
    if config.schedule.form != "stable" and config.schedule.decay_share != ScheduleConfig.decay_share:
        raise UserError(
            f"schedule.decay_share={config.schedule.decay_share} is for schedule.form=stable, but the form is "
            f"{config.schedule.form}; set one of them back"
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
    """Refuse a configuration from which no model can be made; the only checks for one that is stored with weights.

    Raises:
        UserError: names the key and its allowed values.
    """
    intervals.check(config)
    model, contrast = config.model, config.contrast
    if model.hidden_size % model.num_heads:
        raise UserError(f"model.hidden_size={model.hidden_size} is not a multiple of model.num_heads={model.num_heads}")
    if any(size < 1 for size in model.region_tag_sizes):
        sizes = ",".join(map(str, model.region_tag_sizes))
        raise UserError(f"model.region_tag_sizes={sizes} must each be at least 1")
    # If the size is still 0, the data will set both.
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
