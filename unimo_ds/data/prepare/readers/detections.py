"""A detector's output as region features of this project: checked, boxes as fractions, the likeliest classes.

Features are tied to their detector: two detectors in one folder are refused, unless they are given the same name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.limits import MAX_REGIONS
from unimo_ds.data.prepare.readers.protocol import HeldRegions
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.data.schema import Regions

MIN_CONFIDENCE, FEWEST_REGIONS, MOST_REGIONS = 0.2, 10, 100
"""Boxes kept, as in the paper, if a file holds more and has confidences."""
_OVERSHOOT = 0.02
"""Boxes may exceed the image by this fraction, as detectors' boxes do; they are clipped."""
LARGEST_SHARE = 2.0
"""Boxes with no larger coordinate are not in pixels: some writers store the size beside boxes that are already fractions."""
_LARGEST_HALF = 65504.0

Floats = NDArray[np.floating[Any]]


class BadDetections(Exception):
    """Stored detections that cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Detections:
    """One image's regions as stored in their file; any number of boxes."""

    features: Floats
    """[R, F]"""
    boxes: Floats
    """[R, 4] x1, y1, x2, y2, in pixels if `size` is given (unless none exceeds `LARGEST_SHARE`), otherwise as fractions."""
    size: tuple[float, float] | None = None
    """Width and height of the image."""
    class_ids: NDArray[Any] | None = None
    """[R] the class of each region."""
    confidences: Floats | None = None
    """[R] its confidence."""
    probabilities: Floats | None = None
    """[R, C] the detector's whole distribution, if stored."""


@dataclass(frozen=True)
class FeatureFiles:
    """`Pictures` with region features made elsewhere."""

    settings: ImportSettings

    @property
    def held_regions(self) -> HeldRegions:
        """Their entry in the manifest."""
        settings = self.settings
        name = settings.feature_name or settings.features_format
        about = f"held:{name}:{settings.feature_size}:{settings.num_classes}:{settings.max_classes}"
        return HeldRegions(hashlib.sha256(about.encode()).hexdigest()[:16], settings.num_classes)


def to_regions(found: Detections, settings: ImportSettings) -> Regions:
    """The regions of one image: float16 features, boxes within [0, 1], `max_classes` classes with their probabilities.

    An unknown class has probability 0, and so no part in any loss.

    Raises:
        BadDetections: with the kind of problem as its reason.
    """
    features, boxes = np.asarray(found.features), np.asarray(found.boxes, np.float64)
    num_regions = len(features) if features.ndim == 2 else 0
    if boxes.shape != (num_regions, 4) or not num_regions:
        raise BadDetections("features of a wrong shape", f"features {features.shape}, boxes {boxes.shape}")
    if features.shape[1] != settings.feature_size:
        raise BadDetections(
            "features of another size", f"{features.shape[1]}, not {settings.feature_size} (--feature-size)"
        )
    if not np.isfinite(features).all():
        raise BadDetections("features with NaN or infinite values")
    if np.abs(features).max() > _LARGEST_HALF:
        raise BadDetections("features beyond the range of float16", f"{np.abs(features).max():.3g}")
    if found.size is not None:
        if not (np.isfinite(found.size).all() and min(found.size) > 0):
            raise BadDetections("an image without width and height", f"{found.size}")
        if np.abs(boxes).max() > LARGEST_SHARE:
            boxes = boxes / np.array([*found.size, *found.size])
    if not np.isfinite(boxes).all() or boxes.min() < -_OVERSHOOT or boxes.max() > 1 + _OVERSHOOT:
        raise BadDetections("boxes outside the image")
    if not boxes.any():
        raise BadDetections("boxes that are all zeros")
    if not (features.any(axis=1) | boxes.any(axis=1)).all():
        raise BadDetections(
            "regions that are all zeros", "as padding is; HDF5 tells the number of the others by num_boxes"
        )
    boxes = boxes.clip(0, 1)
    if (boxes[:, :2] > boxes[:, 2:]).any():
        raise BadDetections("boxes whose corners are in the wrong order")
    class_ids, probabilities = _classes(found, num_regions, settings)
    chosen = _chosen(found.confidences, num_regions)
    return Regions(
        boxes=boxes[chosen].astype(np.float32),
        features=features[chosen].astype(np.float16),
        class_ids=class_ids[chosen],
        class_probabilities=probabilities[chosen],
    )


def _chosen(confidences: Floats | None, num_regions: int) -> NDArray[np.int64]:
    """Indices of the regions kept, in order: all above the confidence limit, at least ten, at most a hundred."""
    if confidences is None or num_regions <= FEWEST_REGIONS:
        if num_regions > MAX_REGIONS:
            raise BadDetections("more regions than a shard may hold", f"{num_regions}")
        return np.arange(num_regions)
    surest = np.argsort(-np.asarray(confidences, np.float64), kind="stable")
    number = int(np.clip((np.asarray(confidences) > MIN_CONFIDENCE).sum(), FEWEST_REGIONS, MOST_REGIONS))
    return np.sort(surest[:number])


def _classes(
    found: Detections, num_regions: int, settings: ImportSettings
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """[R, max_classes] each."""
    if found.confidences is not None and np.shape(found.confidences) != (num_regions,):
        raise BadDetections("confidences of a wrong shape", f"{np.shape(found.confidences)}")
    most = settings.max_classes
    ids, probabilities = np.zeros((num_regions, most), np.int32), np.zeros((num_regions, most), np.float32)
    if found.probabilities is not None:
        whole = np.asarray(found.probabilities, np.float32)
        if whole.shape != (num_regions, settings.num_classes):
            raise BadDetections(
                "class probabilities of a wrong shape", f"{whole.shape}, not {settings.num_classes} (--num-classes)"
            )
        _check_shares(whole)
        top = np.argsort(-whole, axis=1, kind="stable")[:, :most]
        ids[:, : top.shape[1]], probabilities[:, : top.shape[1]] = top, np.take_along_axis(whole, top, 1)
    elif found.class_ids is not None:
        if found.class_ids.shape != (num_regions,):
            raise BadDetections("class ids of a wrong shape", f"{found.class_ids.shape}")
        if not ((found.class_ids >= 0) & (found.class_ids < settings.num_classes)).all():
            raise BadDetections(
                "classes beyond their number", f"{found.class_ids.max()} of {settings.num_classes} (--num-classes)"
            )
        ids[:, 0] = found.class_ids
        probabilities[:, 0] = 1 if found.confidences is None else found.confidences
        _check_shares(probabilities)
    return ids, probabilities.clip(0, 1).astype(np.float16)


def _check_shares(probabilities: Floats) -> None:
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-3)).all():
        raise BadDetections("class probabilities outside [0, 1]")


def from_base64(text: bytes | str, dtype: str, rows: int) -> NDArray[Any]:
    """[rows, numbers per row], decoded from base64.

    Raises:
        BadDetections: not base64, or rows of unequal length.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadDetections("a field that is not base64", str(error)) from None
    if rows < 1 or not content or len(content) % (rows * np.dtype(dtype).itemsize):
        raise BadDetections("features of a wrong shape", f"{len(content)} bytes for {rows} regions")
    return np.frombuffer(content, dtype).reshape(rows, -1)
