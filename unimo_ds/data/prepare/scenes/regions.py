"""Regions of drawn scenes: exact boxes, with features pooled from the pixels and mixed by a fixed random projection.

One region per thing, its box known from the geometry, and the four quarters of the picture. Features encode colour, shape and
size only implicitly: pooled pixels, pooled difference from the border, colour moments and extent, standardised and projected.
The class distribution comes from a nearest-centroid classifier in feature space (centroids are the means of the true classes),
so like a detector's it is soft for things that look alike. Source: UNIMO's region inputs and soft labels (paper section 2.2).

Letters: R regions, S statistics, F feature size, C classes, K stored classes per region.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from unimo_ds.data.prepare.scenes.model import COLOURS, GROUNDS, SHAPES
from unimo_ds.data.schema import Regions
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.utils.seed import generator
from unimo_ds.utils.whole_file import write_whole

FEATURE_SIZE = 128
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES) + GROUNDS
"""A thing's class is its colour and shape, a quarter's its ground."""
STORED_CLASSES = 4
QUARTERS = np.array(
    [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)], dtype=np.float32
)

_POOLED = 8
"""Side of the grid to which a region's pixels are pooled."""
_SMALLEST_SCALE = 1e-3

Floats = NDArray[np.float32]


def crop_regions(image: Image.Image, boxes: Floats) -> NDArray[np.uint8]:
    """Each region's pixels averaged to 8 x 8.

    boxes: [R, 4] x1, y1, x2, y2 as fractions. Returns [R, 8, 8, 3] uint8.
    """
    width, height = image.size
    corners = (boxes * np.array([width, height, width, height], np.float32)).tolist()
    crops = [image.resize((_POOLED, _POOLED), Image.Resampling.BOX, box=tuple(corner)) for corner in corners]
    return np.stack([np.asarray(crop) for crop in crops])


def pool_statistics(crops: NDArray[np.uint8], boxes: Floats) -> Floats:
    """Statistics of regions of one or more images: [R, S] float32 from [R, 8, 8, 3] crops and [R, 4] boxes."""
    pixels = crops.astype(np.float32) / 255.0  # [R, 8, 8, 3]
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], axis=1)
    ground = np.median(border, axis=1)  # [R, 3]
    difference = np.linalg.norm(pixels - ground[:, None, None, :], axis=-1)  # [R, 8, 8]
    weights = difference / (difference.sum(axis=(1, 2), keepdims=True) + 1e-6)
    inside = (pixels * weights[..., None]).sum(axis=(1, 2))  # [R, 3] colour of what differs from the border
    middle = pixels[:, 2:6, 2:6].mean(axis=(1, 2))
    sides = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3))
    number = len(boxes)
    groups = (
        pixels.reshape(number, -1),
        (difference / (difference.max(axis=(1, 2), keepdims=True) + 1e-6)).reshape(number, -1),
        np.concatenate([inside, middle, inside**2, inside * np.roll(inside, 1, axis=1)], axis=1),
        np.concatenate([ground, pixels.std(axis=(1, 2)), ground - inside], axis=1),
        np.concatenate([sides, sides.sum(axis=1, keepdims=True)], axis=1),
    )
    return np.concatenate(groups, axis=1).astype(np.float32)


_GROUP_SIZES = (3 * _POOLED**2, _POOLED**2, 12, 9, 3)
_GROUP_WEIGHTS = (1.0, 2.0, 2.0, 1.0, 1.0)
"""Relative energy of each group in the features, regardless of its number of statistics."""
NUM_STATISTICS = sum(_GROUP_SIZES)


@dataclass(frozen=True)
class SceneExtractor:
    """Turns pooled statistics into region features and classes. Fitted on the training part, stored beside the shards."""

    mean: Floats
    """[S]"""
    scale: Floats
    """[S]"""
    projection: Floats
    """[S, F]"""
    centroids: Floats
    """[C, F] mean feature of each class."""
    spread: Floats
    """[1] mean squared distance of features from their class's centroid: the width of the soft labels."""

    @property
    def num_classes(self) -> int:
        return len(self.centroids)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all arrays."""
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def features(self, statistics: Floats) -> NDArray[np.float16]:
        """[R, S] -> [R, F] float16, of about unit variance."""
        standardised = np.clip((statistics - self.mean) / self.scale, -5.0, 5.0)
        # In double precision, rounding to float16 hides the BLAS's summation order: the corpus does not depend on threads.
        features: NDArray[np.float16] = (standardised.astype(np.float64) @ self.projection).astype(np.float16)
        return features

    def classify(self, features: NDArray[np.float16]) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        """Most likely classes of each region and their probabilities, largest first.

        features: [R, F]. Returns ids [R, K] and probabilities [R, K]; the rest of the distribution is dropped.
        """
        wide, centroids = features.astype(np.float64), self.centroids.astype(np.float64)
        squares = (wide**2).sum(axis=1, keepdims=True) - 2 * wide @ centroids.T + (centroids**2).sum(axis=1)
        logits = -squares / (2 * self.spread * _SOFTNESS)
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        ids = np.argsort(-probabilities, axis=1, kind="stable")[:, :STORED_CLASSES].astype(np.int32)
        return ids, np.take_along_axis(probabilities, ids, axis=1).astype(np.float16)

    def regions(self, boxes: Floats, crops: NDArray[np.uint8]) -> Regions:
        """Regions of one or more images from their boxes [R, 4] and crops [R, 8, 8, 3]."""
        features = self.features(pool_statistics(crops, boxes))
        class_ids, class_probabilities = self.classify(features)
        return Regions(boxes.astype(np.float32), features, class_ids, class_probabilities)

    def save(self, folder: Path) -> Path:
        """Write `extractor.safetensors` into the folder. Returns its path."""
        path = folder / EXTRACTOR_FILE
        write_whole(path, save(self._arrays(), metadata={"kind": "scene"}))
        return path

    def _arrays(self) -> dict[str, Floats]:
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


_SOFTNESS = 1 / 4
"""Factor on the spread in the soft labels: since distances concentrate in 128 dimensions, the full spread blurs too much."""


def fit(statistics: Floats, class_ids: NDArray[np.int32], *, seed: int) -> SceneExtractor:
    """Fit standardisation and class centroids; the random projection depends only on the seed.

    statistics: [R, S] of many regions. class_ids: [R] their true classes, indices into CLASSES.
    """
    mean = statistics.mean(axis=0, dtype=np.float64)
    scale = np.maximum(statistics.std(axis=0, dtype=np.float64), _SMALLEST_SCALE)
    weights = np.concatenate(
        [np.full(size, np.sqrt(weight / size)) for size, weight in zip(_GROUP_SIZES, _GROUP_WEIGHTS, strict=True)]
    ) / np.sqrt(sum(_GROUP_WEIGHTS))
    projection = generator(seed, 0x5CE4E).standard_normal((NUM_STATISTICS, FEATURE_SIZE)) * weights[:, None]
    extractor = SceneExtractor(
        mean.astype(np.float32),
        scale.astype(np.float32),
        projection.astype(np.float32),
        np.zeros((len(CLASSES), FEATURE_SIZE), np.float32),
        np.ones(1, np.float32),
    )
    features = extractor.features(statistics).astype(np.float64)
    counts = np.bincount(class_ids, minlength=len(CLASSES))
    centroids = np.zeros((len(CLASSES), FEATURE_SIZE))
    np.add.at(centroids, class_ids, features)
    centroids /= np.maximum(counts, 1)[:, None]
    # A class that never occurs gets a distant centroid, so that nothing is assigned to it.
    centroids[counts == 0] = 100.0
    spread = ((features - centroids[class_ids]) ** 2).sum(axis=1).mean(keepdims=True)
    return dataclasses.replace(extractor, centroids=centroids.astype(np.float32), spread=spread.astype(np.float32))
