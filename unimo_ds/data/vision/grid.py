"""Regions of an image without a detector: a grid at two scales, described by a dictionary of patches learned from the corpus.

UNIMO's regions come from a Faster R-CNN, whose weights may not be available, so the default extractor needs none: patches are
whitened, a dictionary is learned by spherical k-means, activations are soft-thresholded and pooled over each cell (Coates, Lee
and Ng 2011; Coates and Ng 2012), concatenated with colour histograms, and mapped to `feature_size` by principal components.
Classes are a codebook of the cells.

Letters: N images, C cells of the finest grid, R regions, D descriptor size, F feature size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image

from unimo_ds.config import from_dict
from unimo_ds.data.schema import Regions
from unimo_ds.data.vision import extractor_file, region_fitting
from unimo_ds.data.vision.extractor_file import StoredExtractor
from unimo_ds.data.vision.region_extractor import RegionExtractor, RegionLearner
from unimo_ds.data.vision.region_fitting import regions_of
from unimo_ds.utils.errors import UserError

KIND = "grid"
_IMAGES_AT_ONCE = 8
"""Small enough that activations stay in the cache and are not returned to the system after every batch."""
_NUM_COLOURS = 64
_COLOUR_POOL = 3
"""Side, in pixels of the working image, of the blocks whose mean colour is counted."""
_COLOUR_SOFTNESS = 0.15
_THRESHOLD = 0.5
"""Activations of smaller absolute value count as zero."""
_LARGEST_FEATURE = 20.0
"""Images unlike those learned from must neither overflow float16 nor dominate a regression loss."""


@dataclass(frozen=True)
class GridSettings:
    """Sizes of a `GridExtractor`."""

    grids: tuple[int, int] = (4, 2)
    """Cells per side, finest first; the finest is a multiple of the other."""
    feature_size: int = 384
    num_classes: int = 100
    stored_classes: int = 4
    image_side: int = 96
    patch_side: int = 6
    strides: tuple[int, int] = (2, 1)
    """Strides of patches, in the working image and in its half-size copy."""
    num_patches: int = 400
    """Dictionary entries for each of the two sizes; each gives two activations, one per sign."""

    def check(self) -> None:
        """
        Raises:
            UserError: sizes that do not fit together.
        """
        if min(self.grids) < 1 or self.grids[0] % self.grids[1]:
            raise UserError(f"grids {self.grids}: the finer must be a multiple of the coarser")
        if self.image_side % (_COLOUR_POOL * self.grids[0]):
            raise UserError(f"image side {self.image_side} must be a multiple of {_COLOUR_POOL * self.grids[0]}")
        if self.image_side < 2 * self.patch_side:
            raise UserError(f"image side {self.image_side} must be at least twice the patch side {self.patch_side}")
        if not 1 <= self.feature_size <= self.descriptor_size:
            raise UserError(f"feature size {self.feature_size} must lie between 1 and {self.descriptor_size}")
        if not 1 <= self.stored_classes <= self.num_classes:
            raise UserError(f"stored classes {self.stored_classes} must lie between 1 and {self.num_classes}")

    @property
    def descriptor_size(self) -> int:
        return 2 * len(self.strides) * self.num_patches + _NUM_COLOURS + 6


@dataclass(frozen=True)
class _Parameters:
    """What `fit` learns; all float32."""

    filters: torch.Tensor
    """[2, num_patches, 3, side, side] for each image size the dictionary times whitening, zero mean."""
    filter_bias: torch.Tensor
    """[2, num_patches]"""
    colour_mean: torch.Tensor
    """[3]"""
    colour_scale: torch.Tensor
    """[3]"""
    colours: torch.Tensor
    """[64, 3]"""
    descriptor_mean: torch.Tensor
    """[D]"""
    projection: torch.Tensor
    """[D, F] standardisation, principal components and scale in one."""
    classes: torch.Tensor
    """[num_classes, F]"""
    class_softness: torch.Tensor
    """[] squared distance that counts as one unit."""


class GridExtractor:
    """Grid regions of any image, the same for the same image and parameters."""

    def __init__(self, settings: GridSettings, parameters: _Parameters) -> None:
        self.settings = settings
        self.parameters = parameters
        self._boxes = _grid_boxes(settings.grids)

    @property
    def feature_size(self) -> int:
        return self.settings.feature_size

    @property
    def num_classes(self) -> int:
        return self.settings.num_classes

    @property
    def working_side(self) -> int:
        return self.settings.image_side

    @property
    def fingerprint(self) -> str:
        """Hash of settings and parameters, 16 hexadecimal digits."""
        return extractor_file.fingerprint(self.settings, vars(self.parameters))

    @torch.inference_mode()
    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """One `Regions` per image: the finest grid row by row, then the coarser; float16 features of unit scale."""
        if not images:
            return []
        settings, learned = self.settings, self.parameters
        descriptors_NRD = _describe(_pixels(images, settings.image_side), settings, learned)
        features_NRF = (descriptors_NRD - learned.descriptor_mean) @ learned.projection
        features_NRF.clamp_(-_LARGEST_FEATURE, _LARGEST_FEATURE)
        codebook = learned.classes, learned.class_softness
        return regions_of(self._boxes, features_NRF, *codebook, stored_classes=settings.stored_classes)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `extractor.safetensors` into the folder, atomically. Returns its path."""
        return extractor_file.write(folder, kind=KIND, settings=self.settings, tensors=vars(self.parameters))


class GridLearner(RegionLearner):
    """A grid extractor still to be learned."""

    num_images = 1500
    working_side = GridSettings().image_side

    @property
    def fingerprint(self) -> str:
        return extractor_file.fingerprint(GridSettings(), {})

    def learn(self, images: Iterable[Image.Image], *, seed: int) -> GridExtractor:
        size = (self.working_side, self.working_side)
        # Shrink each image at once: the list must stay small however large the photographs are.
        return fit([image.resize(size, Image.Resampling.BOX) for image in images], seed=seed)

    def became(self, extractor: RegionExtractor) -> bool:
        return isinstance(extractor, GridExtractor)


ready_made = GridLearner


def of_stored(stored: StoredExtractor) -> GridExtractor:
    """The grid extractor in a file.

    Raises:
        UserError: parameters that are missing or do not fit the settings.
    """
    settings = from_dict(GridSettings, stored.settings, where=f"settings in {stored.file}")
    names = {field.name for field in dataclasses.fields(_Parameters)}
    if stored.tensors.keys() != names:
        raise UserError(f"cannot read the region extractor {stored.file}: it does not hold {', '.join(sorted(names))}")
    parameters = _Parameters(**stored.tensors)
    settings.check()
    if parameters.projection.shape != (settings.descriptor_size, settings.feature_size):
        raise UserError(f"the parameters in {stored.file} do not fit its settings")
    return GridExtractor(settings, parameters)


@torch.inference_mode()
def fit(images: Sequence[Image.Image], *, seed: int, settings: GridSettings | None = None) -> GridExtractor:
    """Learn dictionary, colours, components and classes from RGB images (one or two thousand are enough).

    The result is a function of the images, their order, seed and settings.

    Raises:
        UserError: no images, or settings that do not fit together.
    """
    settings = settings or GridSettings()
    settings.check()
    if not images:
        raise UserError("a region extractor cannot be fitted on no images; give at least one that can be decoded")
    randomness = torch.Generator().manual_seed(seed)
    pixels = _pixels(images, settings.image_side)
    fitted = [
        region_fitting.fit_filters(one, side=settings.patch_side, number=settings.num_patches, randomness=randomness)
        for one in _sizes(pixels)
    ]
    filters, filter_bias = (torch.stack(parts) for parts in zip(*fitted, strict=True))
    plain_colours = _standard_colours(pixels, torch.zeros(3), torch.ones(3)).permute(0, 2, 3, 1).reshape(-1, 3)
    colours, colour_mean, colour_scale = region_fitting.fit_colours(
        plain_colours, number=_NUM_COLOURS, randomness=randomness
    )
    empty = torch.zeros(0)
    parameters = _Parameters(filters, filter_bias, colour_mean, colour_scale, colours, empty, empty, empty, empty)
    descriptors = _describe(pixels, settings, parameters).flatten(0, 1)
    mean, projection = region_fitting.fit_projection(descriptors, settings.feature_size)
    features = (descriptors - mean) @ projection
    classes, softness = region_fitting.fit_classes(features, settings.num_classes, randomness)
    learned = dataclasses.replace(
        parameters, descriptor_mean=mean, projection=projection, classes=classes, class_softness=softness
    )
    return GridExtractor(settings, learned)


def _pixels(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """[N, 3, side, side] float32 in [0, 1]; aspect ratio is not kept, since boxes are fractions of width and height."""
    arrays = [np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def _grid_boxes(grids: Sequence[int]) -> torch.Tensor:
    """[R, 4] fractions, row by row."""
    boxes = [
        (column / side, row / side, (column + 1) / side, (row + 1) / side)
        for side in grids
        for row in range(side)
        for column in range(side)
    ]
    return torch.tensor(boxes)


def _describe(pixels: torch.Tensor, settings: GridSettings, parameters: _Parameters) -> torch.Tensor:
    """Descriptors of all regions of all images, [N, R, D], a few images at a time."""
    parts = torch.split(pixels, _IMAGES_AT_ONCE)
    return torch.cat([_at_all_scales(_cells(part, settings, parameters), settings) for part in parts])


def _cells(pixels: torch.Tensor, settings: GridSettings, parameters: _Parameters) -> torch.Tensor:
    """Mean activations and colour statistics of each cell of the finest grid: [N, C, D]."""
    grid = settings.grids[0]
    answers = [
        part
        for i, (image, stride) in enumerate(zip(_sizes(pixels), settings.strides, strict=True))
        for part in _answers(image, parameters.filters[i], parameters.filter_bias[i], stride=stride, grid=grid)
    ]
    colours = _standard_colours(pixels, parameters.colour_mean, parameters.colour_scale)
    distances = region_fitting.squared_distances(colours.permute(0, 2, 3, 1), parameters.colours)
    shares = torch.softmax(-distances / _COLOUR_SOFTNESS, dim=-1).permute(0, 3, 1, 2)
    parts = [*answers, *(functional.adaptive_avg_pool2d(x, grid) for x in (shares, colours, colours**2))]
    return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)


def _sizes(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The image and its half-size copy, in which a patch covers twice the width and height."""
    return pixels, functional.avg_pool2d(pixels, 2)


def _answers(
    pixels: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor, *, stride: int, grid: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean activation of each filter in each cell, positive and negative: [N, num_patches, grid, grid] each."""
    side = filters.shape[-1]
    box = torch.full((1, 3, side, side), 1 / (3 * side * side))
    mean = functional.conv2d(pixels, box, stride=stride)
    variance = functional.conv2d(pixels * pixels, box, stride=stride) - mean * mean
    answers = functional.conv2d(pixels, filters, stride=stride)
    answers.mul_(torch.rsqrt(variance.clamp_min(0) + region_fitting.CONTRAST_FLOOR)).add_(bias[:, None, None])
    positive = functional.adaptive_avg_pool2d((answers - _THRESHOLD).relu_(), grid)
    negative = functional.adaptive_avg_pool2d(answers.neg_().sub_(_THRESHOLD).relu_(), grid)
    return positive, negative


def _at_all_scales(cells_NCD: torch.Tensor, settings: GridSettings) -> torch.Tensor:
    """[N, R, D] descriptors of all regions: cells pooled to each grid, shares square-rooted (Hellinger), colour moments."""
    fine, coarse = settings.grids
    ratio = fine // coarse
    size = cells_NCD.shape[-1]
    pooled = cells_NCD.reshape(-1, coarse, ratio, coarse, ratio, size).mean(dim=(2, 4)).flatten(1, 2)
    all_NRD = torch.cat([cells_NCD, pooled], dim=1)
    shares, mean, square = torch.split(all_NRD, [size - 6, 3, 3], dim=-1)
    return torch.cat([shares.sqrt(), mean, (square - mean * mean).clamp_min(0).sqrt()], dim=-1)


def _standard_colours(pixels: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Brightness, red-green and yellow-blue of small blocks, standardised: [N, 3, side / 3, side / 3]."""
    red, green, blue = functional.avg_pool2d(pixels, _COLOUR_POOL).unbind(1)
    opponent = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], dim=1)
    return (opponent - mean[:, None, None]) / scale[:, None, None]
