"""Regions of scenes, in two ways with one interface: exact boxes from the geometry, or the grid used for photographs."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimo_ds.data.prepare.scenes import regions as scene_regions
from unimo_ds.data.prepare.scenes.drawing import boxes_of, draw_jpeg
from unimo_ds.data.prepare.scenes.model import Scene
from unimo_ds.data.prepare.scenes.regions import SceneExtractor
from unimo_ds.data.schema import Regions
from unimo_ds.data.vision import grid as photograph_grid
from unimo_ds.data.vision.grid import GridExtractor

NUM_FITTED_SCENES = 1000
"""Training scenes on which an extractor is fitted; about fifty things of each colour and shape."""


@dataclass(frozen=True)
class FittedExtractor:
    """The interface that the corpus writer uses."""

    inner: SceneExtractor | GridExtractor
    regions: Callable[[Sequence[Scene], Sequence[bytes]], list[Regions]]
    """Regions of each drawing, computed from its stored JPEG."""


def fit_extractor(kind: Literal["exact", "grid"], scenes: Sequence[Scene], *, seed: int) -> FittedExtractor:
    """An extractor fitted on the first training scenes.

    exact: one region per thing, with its true box, then the four quarters of the picture. grid: as for photographs, cells that
    are independent of the things.
    """
    fitted = scenes[:NUM_FITTED_SCENES]
    jpegs = [draw_jpeg(scene) for scene in fitted]
    if kind == "grid":
        grid = photograph_grid.fit([_decode(jpeg) for jpeg in jpegs], seed=seed)
        return FittedExtractor(grid, lambda _, drawn: grid.extract([_decode(jpeg) for jpeg in drawn]))
    boxes, crops = _crop(fitted, jpegs)
    statistics = scene_regions.pool_statistics(np.concatenate(crops), np.concatenate(boxes))
    exact = scene_regions.fit(statistics, np.concatenate([_class_ids(scene) for scene in fitted]), seed=seed)
    return FittedExtractor(exact, functools.partial(_exact_regions, exact))


def _exact_regions(extractor: SceneExtractor, scenes: Sequence[Scene], jpegs: Sequence[bytes]) -> list[Regions]:
    boxes, crops = _crop(scenes, jpegs)
    # All at once, since for a single drawing NumPy's call overhead exceeds the arithmetic.
    joined = extractor.regions(np.concatenate(boxes), np.concatenate(crops))
    starts = np.cumsum([len(part) for part in boxes])[:-1]
    columns = (joined.features, joined.class_ids, joined.class_probabilities)
    return list(map(Regions, boxes, *(np.split(column, starts) for column in columns)))


def _crop(
    scenes: Sequence[Scene], jpegs: Sequence[bytes]
) -> tuple[list[scene_regions.Floats], list[NDArray[np.uint8]]]:
    """Boxes and crops of each drawing: those of its things, then of the quarters."""
    boxes = [np.concatenate([boxes_of(scene), scene_regions.QUARTERS]) for scene in scenes]
    return boxes, [scene_regions.crop_regions(_decode(jpeg), part) for part, jpeg in zip(boxes, jpegs, strict=True)]


def _decode(jpeg: bytes) -> Image.Image:
    # Features come from the stored JPEG, not from the drawing, so that they can be recomputed from a shard.
    with Image.open(io.BytesIO(jpeg)) as image:
        return image.convert("RGB")


def _class_ids(scene: Scene) -> NDArray[np.int32]:
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things] + [scene.ground] * len(scene_regions.QUARTERS)
    return np.array([scene_regions.CLASSES.index(name) for name in names], np.int32)
