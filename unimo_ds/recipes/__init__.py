"""Named runs: one function per file, each returning a complete configuration. `load(name)` finds one."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Protocol

from unimo_ds.config import RunConfig
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError, nearest_name

RUNS_ON = {
    "demo": (2, "cpu"),
    "small": (2, "cpu"),
    "single_gpu": (1, "h200"),
    "base_32xv100": (32, "v100"),
    "large_64xv100": (64, "v100"),
    "base_pixels_32xv100": (32, "v100"),
}
"""What each is meant for: (processes, hardware as in `unimo plan`). A new recipe is a file here and a line above."""
NAMES = tuple(RUNS_ON)


class DataSizes(Protocol):
    """Sizes that a recipe may take from the data (a `Corpus` has all of them)."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def feature_size(self) -> int: ...

    @property
    def num_region_classes(self) -> int: ...

    @property
    def region_tag_sizes(self) -> tuple[int, ...]: ...

    @property
    def patch_columns(self) -> int: ...


def load(name: str) -> RunConfig:
    """The recipe of this name.

    Raises:
        UserError: no such recipe; the message names the nearest.
    """
    if name not in NAMES:
        raise UserError(f"unknown recipe {name!r}{nearest_name(name, NAMES)}")
    module = importlib.import_module(f"unimo_ds.recipes.{name}")
    config: RunConfig = getattr(module, name)()
    return config


def device_note(recipe: str, device_type: str) -> str:
    """Note to the user of a recipe for GPUs that runs without one; empty if nothing is wrong."""
    _, hardware = RUNS_ON.get(recipe, (1, "cpu"))
    if hardware == "cpu" or device_type != "cpu":
        return ""
    return f"no GPU that torch can use, so the recipe {recipe} runs on the CPU; `unimo doctor` says more"


def held_out_note(config: RunConfig) -> str:
    """Note to the user of a run that would measure held-out data and has none; empty if it has, or measures nothing."""
    if config.data.held_out_path or not config.evaluation.every_steps:
        return ""
    return (
        "no held-out data, so nothing is measured during training; give --data a folder that holds train/ and held_out/, "
        "--set data.held_out_path=FOLDER, or --set evaluation.every_steps=0"
    )


def with_data(config: RunConfig, path: str) -> RunConfig:
    """`config` reading `path`: a data folder, or one that holds `train/` and, for evaluation, `held_out/`; or several, `A::B`.

    Raises:
        UserError: as `locations.split`.
    """
    places = locations.split(path)
    held_out = [found for place in places if (found := _folder_in(place, "held_out"))]
    data = dataclasses.replace(
        config.data,
        path=locations.join([_folder_in(place, "train") or place for place in places]),
        held_out_path=locations.join(held_out) or None,
    )
    return dataclasses.replace(config, data=data)


def without_unread(config: RunConfig) -> RunConfig:
    """`config` without the folders whose weight in `data.folder_weights` is 0. If no folder would be left, or the numbers of
    weights and folders differ, `config` is unchanged, and is refused later with the data.
    """
    weights, places = config.data.folder_weights, locations.split(config.data.path) if config.data.path else ()
    read = [number for number, weight in enumerate(weights) if weight]
    if not read or len(weights) != len(places):
        return config
    data = dataclasses.replace(
        config.data,
        path=locations.join([places[number] for number in read]),
        folder_weights=tuple(weights[number] for number in read),
    )
    return dataclasses.replace(config, data=data)


def _folder_in(place: str, name: str) -> str:
    """The data folder of that name in `place`; empty if there is none."""
    folder = Path(place) / name
    return str(folder) if (folder / "manifest.json").is_file() else ""


def fit_to_data(config: RunConfig, corpus: DataSizes) -> RunConfig:
    """`config` with sizes from the data where the recipe leaves them at 0.

    `model.vocabulary_size`, `model.region_feature_size` and `model.num_region_classes` belong to the tokenizer and the region
    extractor, so recipes that start from scratch leave them at 0. Image layers need all patches, and a position for each.
    Sizes that a recipe states are kept; `check_corpus`, not this function, compares them with the data.
    """
    model, data = config.model, config.data
    if model.num_image_layers and not model.region_tag_sizes:
        model = dataclasses.replace(model, region_tag_sizes=corpus.region_tag_sizes, patch_columns=corpus.patch_columns)
        data = dataclasses.replace(data, max_regions=max(data.max_regions, model.num_patches))
    # A corpus with only texts has no regions; a table of one unused row keeps the model's modules the same.
    fitted = dataclasses.replace(
        model,
        vocabulary_size=model.vocabulary_size or corpus.vocabulary_size,
        region_feature_size=model.region_feature_size or max(1, corpus.feature_size),
        num_region_classes=model.num_region_classes or max(1, corpus.num_region_classes),
    )
    return dataclasses.replace(config, model=fitted, data=data)
