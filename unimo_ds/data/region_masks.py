"""Masked regions (paper section 2.2): random ones, and those that would give them away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import MaskingConfig
from unimo_ds.data.draws import Integers, mix_many, ranges, uniform

_REGION = 0x72656769
"""Makes the keys of regions differ from those of a sequence's other draws."""


def mask_regions(
    boxes: NDArray[np.float32], counts: Integers, keys: Integers, *, masking: MaskingConfig
) -> NDArray[np.bool_]:
    """Regions to mask: random anchors, and every region that overlaps an anchor (paper 2.2), for many images at once.

    boxes: [sum R, 4], image by image. counts: [b] regions of each image. keys: [b] random key of each.
    Returns [sum R] bool. The number of anchors is `region_share` of R, rounded up or down at random so that the mean is exact,
    but at least one unless the share is 0; overlap means intersection over union above `region_overlap`.
    """
    starts = np.cumsum(counts) - counts
    image_of = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(boxes)) - starts[image_of]
    # Anchors are the regions with the smallest random numbers in their image.
    order = np.lexsort((mix_many(keys[image_of], _REGION, within), image_of))
    num_anchors = masking.region_share * counts + uniform(mix_many(keys, _REGION, -1))
    num_anchors = np.maximum(num_anchors.astype(np.int64), 1 if masking.region_share else 0)
    anchors = order[within < num_anchors[image_of]]
    masked = np.zeros(len(boxes), bool)
    masked[anchors] = True
    image_of_anchor = image_of[anchors]
    others = ranges(starts[image_of_anchor], counts[image_of_anchor])
    # By coordinate, since vector instructions gain little on rows of four numbers.
    columns = np.ascontiguousarray(boxes.T)
    ones = columns.take(np.repeat(anchors, counts[image_of_anchor]), axis=1)
    overlaps = overlap(ones.T, columns.take(others, axis=1).T)
    masked[others[overlaps > masking.region_overlap]] = True
    return masked


def overlap(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes [..., 4] that broadcast: [...]; 0 if both are empty."""
    sides = np.minimum(ones[..., 2:], others[..., 2:]) - np.maximum(ones[..., :2], others[..., :2])
    sides = np.maximum(sides, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(ones) + _areas(others) - shared
    result: NDArray[np.float32] = shared / np.maximum(union, np.float32(1e-12))
    return result


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return result
