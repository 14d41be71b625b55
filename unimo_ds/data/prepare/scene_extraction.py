"""The two ways to give scenes regions, behind one face: exact boxes from the geometry, or the grid that photographs get."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from unimo_ds.data.prepare import scene_regions
from unimo_ds.data.prepare.scene_drawing import boxes_of, draw_jpeg
from unimo_ds.data.prepare.scene_model import Scene
from unimo_ds.data.schema import Regions

NUM_FITTED_SCENES = 1000
"""Scenes of the training part that an extractor is fitted on; about fifty things of each colour and shape."""


class FittedExtractor(Protocol):
    """What the corpus writer needs of an extractor."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    def regions(self, scene: Scene, jpeg: bytes) -> Regions:
        """Regions of one drawing, computed from its stored JPEG."""
        ...

    def save(self, folder: Path) -> Path:
        """Write the extractor into a data folder. Returns the file's path."""
        ...


def fit_extractor(kind: Literal["exact", "grid"], scenes: Sequence[Scene], *, seed: int) -> FittedExtractor:
    """An extractor fitted on the first scenes of the training part."""
    fitted = scenes[:NUM_FITTED_SCENES]
    return ExactExtractor.fit(fitted, seed=seed)


class ExactExtractor:
    """One region per thing, its box known, then the four quarters of the picture."""

    def __init__(self, inner: scene_regions.SceneExtractor) -> None:
        self.inner = inner

    @classmethod
    def fit(cls, scenes: Sequence[Scene], *, seed: int) -> ExactExtractor:
        statistics = np.concatenate([_pool(draw_jpeg(scene), _boxes(scene)) for scene in scenes])
        class_ids = np.concatenate([_class_ids(scene) for scene in scenes])
        return cls(scene_regions.fit(statistics, class_ids, seed=seed))

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def num_classes(self) -> int:
        return self.inner.num_classes

    def regions(self, scene: Scene, jpeg: bytes) -> Regions:
        boxes = _boxes(scene)
        return self.inner.regions(boxes, _pool(jpeg, boxes))

    def save(self, folder: Path) -> Path:
        return self.inner.save(folder)


def _boxes(scene: Scene) -> scene_regions.Floats:
    return np.concatenate([boxes_of(scene), scene_regions.QUARTERS])


def _pool(jpeg: bytes, boxes: scene_regions.Floats) -> scene_regions.Floats:
    # The stored JPEG, not the drawing, is what the features come from, so that they can be computed again from a shard.
    with Image.open(io.BytesIO(jpeg)) as image:
        return scene_regions.pool_regions(image.convert("RGB"), boxes)


def _class_ids(scene: Scene) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things] + [scene.ground] * len(scene_regions.QUARTERS)
    return np.array([scene_regions.CLASSES.index(name) for name in names], np.int32)
