"""A checkpoint of any kind with all that its use needs: model, tokenizer, region extractor, assets of its task."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unimo_ds.config import RunConfig
from unimo_ds.data.schema import FIRST_POSITION
from unimo_ds.data.storage import blend
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.data.vision import extractors, resolution
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.data.vision.region_extractor import RegionExtractor
from unimo_ds.evaluation import checkpoint, run_paths
from unimo_ds.evaluation.checkpoint import CheckpointFiles
from unimo_ds.evaluation.encode import OneDevice
from unimo_ds.evaluation.own_tokenizer import tokenizer_of
from unimo_ds.finetune.loaded import LoadedTask, load_task
from unimo_ds.models.unimo import ModelOutput, Unimo
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import networks_on

_WITHIN_A_TASK = (("train",), ("images",), ("images", "train"))
"""Paths of data folders within the folder of a task's official files."""


@dataclass(frozen=True)
class Source(OneDevice[ModelOutput]):
    """A model in float32 and evaluation mode."""

    module: Unimo
    """A `TaskModel` if fine-tuned."""
    config: RunConfig
    files: CheckpointFiles
    tokenizer: Tokenizer
    extractor: RegionExtractor | None
    """None if the model was trained on given regions, or if its data is gone."""
    assets: Mapping[str, Any] = field(default_factory=dict)
    """Of its task: answer vocabulary, object names."""

    @property
    def task(self) -> str | None:
        """Task of the fine-tuning; None: pre-trained."""
        return None if self.config.finetune is None else self.config.finetune.task

    @property
    def max_text_tokens(self) -> int:
        """Limit on tokens of a text, specials included."""
        return min(self.config.data.max_text_tokens, self.config.model.max_positions - FIRST_POSITION)


def load(
    path: str | os.PathLike[str],
    *,
    tokenizer: Path | None = None,
    extractor: Path | None = None,
    device: torch.device | None = None,
) -> Source:
    """The model at `path`: a run, a checkpoint, an export, or a folder saved by transformers; pre-trained or fine-tuned.

    tokenizer, extractor: file or folder; None: those beside the model or in its run's data.

    Raises:
        UserError: missing, damaged, a model of another kind, no matching tokenizer, or another region extractor.
    """
    files = checkpoint.find(path)
    config = checkpoint.read_config(files.config)
    loaded = (checkpoint.load if config.finetune is None else load_task)(Path(path), device=device)
    assets = loaded.assets if isinstance(loaded, LoadedTask) else {}
    found = tokenizer_of(files, config, tokenizer)
    with networks_on(device):
        maker = extractors.load(extractor) if extractor is not None else find_extractor(files, config)
    if maker is not None and maker.feature_size != config.model.region_feature_size:
        raise UserError(
            f"the region extractor makes features of size {maker.feature_size}, the model takes "
            f"{config.model.region_feature_size}; give the model's own with --extractor"
        )
    made_with = config.data.made_with.get("extractor")
    if maker is not None and made_with is not None and maker.fingerprint != made_with:
        raise UserError(
            f"the region extractor {maker.fingerprint} is not {made_with}, whose regions the model was trained on; give the "
            "model's own with --extractor"
        )
    return Source(loaded.module, loaded.device, config, files, found, maker, assets)


def find_extractor(files: CheckpointFiles, config: RunConfig) -> RegionExtractor | None:
    """The one for the model's patches; otherwise the one beside the weights or configuration, in the run's data, or of the
    model that a fine-tuning started from."""
    grid = resolution.grid_of(config)
    if grid is not None and "extractor" in config.data.made_with:  # the same extractor: the fingerprints agree
        return PatchExtractor(grid)
    for folder in (files.weights.parent, files.config.parent):
        if (folder / EXTRACTOR_FILE).is_file():
            return extractors.load(folder)
    for parts in _WITHIN_A_TASK if config.finetune is not None else ((),):
        try:
            data = blend.still_there(os.path.join(run_paths.from_here(config.data.path, files.config), *parts))
        except UserError:
            continue
        entry = data.manifest.extractor
        if entry is None or entry.file is None or not extractors.makes_regions(data.file_path(entry.file)):
            return None
        return extractors.load(data.file_path(entry.file))
    if config.finetune is not None and config.finetune.start:
        try:
            start = checkpoint.find(run_paths.from_here(config.finetune.start, files.config))
            return find_extractor(start, checkpoint.read_config(start.config))
        except UserError:
            return None
    return None
