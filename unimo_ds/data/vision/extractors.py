"""Loads region extractors of every kind, from the file in a data folder or from a network's weights.

A new kind is a module with `KIND`, `of_stored`, and either `from_weights`, for a network trained elsewhere, or `ready_made`, if
it needs no weights; and a line here. The last two may return a `RegionLearner`, which must first see images of the corpus.
Modules are imported only when needed, since a detector imports its network.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import Any

from unimo_ds.data.vision import extractor_file
from unimo_ds.data.vision.regions import RegionExtractor, RegionLearner
from unimo_ds.utils.errors import UserError, nearest_name

_MODULES = {
    "grid": "unimo_ds.data.vision.regions",
    "patches": "unimo_ds.data.vision.patch_extractor",
    "vision-encoder": "unimo_ds.data.vision.vision_encoder",
    "torchvision": "unimo_ds.data.vision.detectors.torchvision_rcnn",
    "bottom-up": "unimo_ds.data.vision.detectors.bottom_up",
}
KINDS = tuple(_MODULES)
_NETWORKS = {"vision-encoder": "folder", "torchvision": "file", "bottom-up": "file"}
"""Kinds that have weights, and whether these are a file or a folder."""


_WITH_SIZES = "patches"


def load(path: str | os.PathLike[str]) -> RegionExtractor:
    """The extractor in a file, or in `extractor.safetensors` of a folder.

    Raises:
        UserError: missing, damaged, or of a kind that makes no regions of photographs.
    """
    kind = extractor_file.kind_of(Path(path))
    if kind not in _MODULES:
        raise UserError(
            f"{extractor_file.file_at(path)} does not hold a grid extractor or a network, "
            "so it cannot make regions of photographs"
        )
    found: RegionExtractor = _module(kind).of_stored(extractor_file.read(path))
    return found


@functools.lru_cache(maxsize=2)
def loaded(path: Path, fingerprint: str) -> RegionExtractor:
    """`load`, cached for the next shard. fingerprint: of the extractor, since the file may be rewritten."""
    return load(path)


def makes_regions(path: str | os.PathLike[str]) -> bool:
    """Whether `load` takes the file. Drawn scenes have an extractor that is given their boxes."""
    try:
        return extractor_file.kind_of(Path(path)) in _MODULES
    except UserError:
        return False


def chosen(
    extractor: Path | None, weights: Path | None, *, image_side: int | None = None, patch_side: int | None = None
) -> RegionExtractor | RegionLearner | None:
    """What `--extractor` (an extractor's file, or a kind) and `--weights` (of a network's kind) select. None: neither is given.

    image_side, patch_side: pixels, only for patches.

    Raises:
        UserError: a kind that needs weights without any, weights without a kind, an unknown kind, sizes for a kind without.
    """
    found: RegionExtractor | RegionLearner
    sizes = check_sizes(extractor, image_side, patch_side)
    if weights is None:
        if extractor is None:
            return None
        if extractor.name not in KINDS or extractor.exists():
            return load(extractor)
        if extractor.name in _NETWORKS:
            place = _NETWORKS[extractor.name]
            raise UserError(f"--extractor {extractor.name} needs its weights; name their {place} with --weights")
        found = _module(extractor.name).ready_made(**sizes)
        return found
    if extractor is None:
        raise UserError(f"--weights {weights} needs --extractor, to say whose they are: {' or '.join(_NETWORKS)}")
    if extractor.name not in KINDS:
        raise UserError(f"--extractor {extractor} is no kind of extractor{nearest_name(extractor.name, KINDS)}")
    if extractor.name not in _NETWORKS:
        raise UserError(f"--extractor {extractor.name} has no weights; leave --weights out")
    found = _module(extractor.name).from_weights(weights)
    return found


def check_sizes(extractor: Path | None, image_side: int | None, patch_side: int | None) -> dict[str, int]:
    """Those of the two that are given. Cheap, so that a whole plan can be checked before anything is made.

    Raises:
        UserError: this extractor has no sizes, or they do not fit together.
    """
    both = {"image_side": image_side, "patch_side": patch_side}
    sizes = {name: value for name, value in both.items() if value is not None}
    if sizes and (extractor is None or extractor.name != _WITH_SIZES or extractor.exists()):
        option = next(iter(sizes)).replace("_", "-")
        raise UserError(f"--{option} is a size of --extractor {_WITH_SIZES}; add that, or leave --{option} out")
    if sizes:
        _module(_WITH_SIZES).ready_made(**sizes)
    return sizes


def is_network(path: str | os.PathLike[str]) -> bool:
    """Whether the extractor in a file, or in a folder, is a network."""
    return extractor_file.kind_of(Path(path)) in _NETWORKS


def _module(kind: str) -> Any:
    return importlib.import_module(_MODULES[kind])
