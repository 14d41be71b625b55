"""Region extractors of every kind behind one door: from the file in a data folder, or from a detector's weights.

A new kind is a module with `KIND`, `of_stored` and `from_weights`, for a network that was trained elsewhere, or `ready_made`, for
what needs no weights; and a line here. Modules are imported when they are needed: a detector brings its network.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from unimo_ds.data import extractor_file
from unimo_ds.data.regions import RegionExtractor
from unimo_ds.utils.errors import UserError, nearest_name

GRID = "grid"
_MODULES = {
    GRID: "unimo_ds.data.regions",
    "torchvision": "unimo_ds.data.detectors.torchvision_rcnn",
    "bottom-up": "unimo_ds.data.detectors.bottom_up",
}
KINDS = tuple(_MODULES)
_DETECTORS = ("torchvision", "bottom-up")
"""Kinds that have weights."""


def load(path: str | os.PathLike[str]) -> RegionExtractor:
    """The extractor in a file, or in `extractor.safetensors` of a folder.

    Raises:
        UserError: nothing there, damaged, or of a kind that makes no regions of photographs.
    """
    kind = extractor_file.kind_of(Path(path))
    if kind not in _MODULES:
        raise UserError(
            f"{extractor_file.file_at(path)} does not hold a grid extractor or a detector, "
            "so it cannot make regions of photographs"
        )
    found: RegionExtractor = _module(kind).of_stored(extractor_file.read(path))
    return found


def makes_regions(path: str | os.PathLike[str]) -> bool:
    """Whether the file is an extractor that `load` takes. Drawn scenes have one that knows their boxes beforehand."""
    try:
        return extractor_file.kind_of(Path(path)) in _MODULES
    except UserError:
        return False


def chosen(extractor: Path | None, weights: Path | None) -> RegionExtractor | None:
    """What `--extractor` and `--weights` ask for: an extractor's file, or a kind, of a detector with its weights.

    None: neither, or the grid, which is learned from images and has no weights.

    Raises:
        UserError: a kind that needs weights without any, weights without a kind, an unknown kind.
    """
    if weights is None:
        if extractor is None or is_grid(extractor):
            return None
        if extractor.name not in KINDS or extractor.exists():
            return load(extractor)
        if extractor.name in _DETECTORS:
            raise UserError(f"--extractor {extractor.name} needs its weights; name their file with --weights")
        made: RegionExtractor = _module(extractor.name).ready_made()
        return made
    if extractor is None:
        raise UserError(f"--weights {weights} needs --extractor, to say whose they are: {' or '.join(_DETECTORS)}")
    if extractor.name not in KINDS:
        raise UserError(f"--extractor {extractor} is no kind of detector{nearest_name(extractor.name, KINDS)}")
    if extractor.name not in _DETECTORS:
        raise UserError(f"--extractor {extractor.name} has no weights; leave --weights out")
    found: RegionExtractor = _module(extractor.name).from_weights(weights)
    return found


def is_grid(extractor: Path | None) -> bool:
    """Whether the grid is asked for by name."""
    return extractor is not None and extractor.name == GRID and not extractor.exists()


def is_detector(path: str | os.PathLike[str]) -> bool:
    """Whether the extractor in a file, or in a folder, is a network."""
    return extractor_file.kind_of(Path(path)) in _DETECTORS


def _module(kind: str) -> Any:
    return importlib.import_module(_MODULES[kind])
