"""Patches of an image as its regions: its pixels, cut whenever it is read.

The whole image is resized to the grid's size; its aspect ratio is not kept, since boxes are fractions of width and height. All
patches have one class; a patch's index is its tag: a model learns a position embedding for each (`model.region_tag_sizes`).

Letters: R patches, F values of a patch.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unimo_ds.data.schema import PatchGrid, Regions
from unimo_ds.data.vision import images
from unimo_ds.data.vision.crops import Crop

_FLOOR = 1e-6
"""Added to the variance of a patch's pixels, which lie within [-1, 1]."""


def of_jpeg(data: bytes | memoryview, grid: PatchGrid, crop: Crop | None = None) -> Regions:
    """The patches of a stored image, or of a crop of it; a function of the bytes, grid and crop.

    Raises:
        images.BadImage: bytes that are not an image, or not safe to decode.
    """
    left, top, right, bottom = crop or (0, 0, 1, 1)
    enough = math.ceil(grid.working_side / min(right - left, bottom - top))
    return cut(images.decode(data, shrink_to=enough), grid, crop)


def cut(image: Image.Image, grid: PatchGrid, crop: Crop | None = None) -> Regions:
    """The patches of an image, row by row; features [R, F] are each one's (row, column, channel), RGB within [-1, 1].

    crop: the part that is used as if it were the whole image. All arrays are read-only.
    """
    size = (grid.columns * grid.side, grid.rows * grid.side)
    left, top, right, bottom = crop or (0, 0, 1, 1)
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    scaled = (image if image.mode == "RGB" else image.convert("RGB")).resize(size, Image.Resampling.BILINEAR, box)
    return _regions(_features(np.asarray(scaled), grid), grid)


def uncut(grid: PatchGrid) -> Regions:
    """`cut` of an image whose pixels are not needed: all features are zero and take no memory."""
    return _regions(np.broadcast_to(np.float16(0), (grid.num_patches, grid.feature_size)), grid)


def _features(pixels: NDArray[np.uint8], grid: PatchGrid) -> NDArray[np.float16]:
    # A patch's row of pixels is moved as one item, and torch converts with vector instructions: much faster than NumPy.
    rows = pixels.reshape(grid.rows, grid.side, -1).view(f"V{3 * grid.side}")
    patches = rows.swapaxes(1, 2).copy().view(np.uint8).reshape(grid.num_patches, grid.feature_size)
    features: NDArray[np.float16] = torch.from_numpy(patches).float().div_(127.5).sub_(1).half().numpy()
    return features


def normalised(pixels_RF: NDArray[np.float16]) -> NDArray[np.float16]:
    """Each patch's pixels with mean 0 and deviation 1 (estimated with F - 1), the targets of a masked autoencoder (He et al.
    2022). A patch of a single colour becomes zeros.
    """
    wide_RF = pixels_RF.astype(np.float32)
    centred_RF = wide_RF - wide_RF.mean(1, keepdims=True)
    deviation_R1 = np.sqrt(wide_RF.var(1, keepdims=True, ddof=1) + _FLOOR)
    found: NDArray[np.float16] = (centred_RF / deviation_R1).astype(np.float16)
    return found


def _regions(features: NDArray[np.float16], grid: PatchGrid) -> Regions:
    features.setflags(write=False)
    return Regions(features=features, patches=grid, **_same_in_all(grid))


@functools.lru_cache(maxsize=8)
def _same_in_all(grid: PatchGrid) -> dict[str, NDArray[Any]]:
    """The fields of `Regions` that are equal for all images."""
    numbers = np.arange(grid.num_patches, dtype=np.int32)[:, None]
    row, column = np.divmod(numbers, grid.columns)
    shares = np.array([grid.columns, grid.rows] * 2, np.float32)
    found: dict[str, NDArray[Any]] = {
        "boxes": np.concatenate([column, row, column + 1, row + 1], axis=1).astype(np.float32) / shares,
        "class_ids": np.zeros_like(numbers),
        "class_probabilities": np.ones(numbers.shape, np.float16),
        "tags": numbers,
    }
    for array in found.values():
        array.setflags(write=False)
    return found
