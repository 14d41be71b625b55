"""Regions from a pre-trained vision encoder: the patches of CLIP, SigLIP, DINOv2, ViT, Swin, ResNet and similar models.

The whole image is resized to the encoder's size: nothing is cropped, and the aspect ratio is not kept, since boxes are
fractions of width and height. The last hidden states, without class and register tokens, are a map of patches; its means over
the cells of a fine and a coarse grid are the regions. Scales differ by orders of magnitude between encoders, and between one's
channels, so features are standardised with statistics of the corpus's first images; classes are a codebook of the same images.

Letters: N images, R regions, F channels, H and W cells of the map.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image

from unimo_ds.config import from_dict
from unimo_ds.data.schema import Regions
from unimo_ds.data.vision import extractor_file, region_fitting, vision_folder
from unimo_ds.data.vision.extractor_file import StoredExtractor
from unimo_ds.data.vision.network_weights import State, fill
from unimo_ds.data.vision.region_extractor import RegionExtractor, RegionLearner
from unimo_ds.data.vision.region_fitting import regions_of
from unimo_ds.data.vision.vision_folder import Pixels
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import worker_device

KIND = "vision-encoder"
_IMAGES_AT_ONCE = 8
_LARGEST_FEATURE = 20.0
"""Extreme channels of single patches (attention sinks) must neither overflow float16 nor dominate a regression loss."""
_SMALLEST_SCALE = 0.01
"""Of a channel, as a fraction of the median over channels that vary: nearly constant ones must not be amplified."""
_PREFIX = "encoder."


@dataclass(frozen=True)
class VisionSettings:
    """All but the tensors."""

    encoder: dict[str, Any]
    """The encoder's configuration in transformers."""
    pixels: Pixels
    map: tuple[int, int]
    """Rows and columns of patches."""
    feature_size: int
    sides: tuple[int, int] = (7, 2)
    """Most cells per side of each grid: 53 regions; with an encoder of 7 x 7, 49 of them are the patches themselves."""
    num_classes: int = 400
    stored_classes: int = 4

    def check(self, where: str) -> None:
        """
        Raises:
            UserError: impossible numbers.
        """
        self.pixels.check(where)
        if min(*self.map, self.feature_size, *self.sides, self.num_classes, self.stored_classes) < 1:
            raise UserError(f"{where} has a map, sides, features or classes of less than one")

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each grid; a single one if the map is no finer than the coarse grid."""
        grids = [(min(side, self.map[0]), min(side, self.map[1])) for side in self.sides]
        return tuple(dict.fromkeys(grids))


class VisionEncoder(RegionLearner):
    """An encoder that has not yet seen the corpus."""

    num_images = 500
    """27,000 regions are enough for 400 classes, and an image takes as long here as in the import itself."""

    def __init__(self, settings: VisionSettings, network: torch.nn.Module) -> None:
        self.settings = settings
        self.device = worker_device()
        self.network = network.to(self.device).eval().requires_grad_(False)

    @functools.cached_property
    def fingerprint(self) -> str:
        return extractor_file.fingerprint(self.settings, self.network.state_dict())

    @property
    def working_side(self) -> int:
        return max(self.settings.pixels.height, self.settings.pixels.width)

    @torch.inference_mode()
    def cells(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """[N, R, F] float32 mean hidden states of each cell, grid by grid, row by row; an image's depend on others in its batch
        only by rounding."""
        parts = []
        for some in batched(images, _IMAGES_AT_ONCE):
            pixels = self.settings.pixels.of(some).to(self.device)
            map_NFHW = vision_folder.patches(self.network, pixels)
            pooled = [functional.adaptive_avg_pool2d(map_NFHW, grid).flatten(2) for grid in self.settings.grids]
            parts.append(torch.cat(pooled, dim=2).transpose(1, 2).float().cpu())
        return torch.cat(parts)

    def learn(self, images: Iterable[Image.Image], *, seed: int) -> VisionExtractor:
        """Learn scales and classes from RGB images. Raises UserError if there are none."""
        parts = [self.cells(some).flatten(0, 1) for some in batched(images, _IMAGES_AT_ONCE)]
        if not parts:
            raise UserError("a region extractor cannot learn from no images; give at least one that can be decoded")
        points = torch.cat(parts)
        scale, mean = torch.std_mean(points, dim=0)
        changing = scale[scale > 0]
        scale = scale.clamp_min(_SMALLEST_SCALE * float(changing.median())) if len(changing) else torch.ones_like(scale)
        features = _standard(points, mean, scale)
        randomness = torch.Generator().manual_seed(seed)
        classes, softness = region_fitting.fit_classes(features, self.settings.num_classes, randomness)
        return VisionExtractor(self, {"mean": mean, "scale": scale, "classes": classes, "class_softness": softness})

    def became(self, extractor: RegionExtractor) -> bool:
        return isinstance(extractor, VisionExtractor) and extractor.encoder.fingerprint == self.fingerprint


class VisionExtractor:
    """Regions of any image, from an encoder and learned statistics of its features."""

    def __init__(self, encoder: VisionEncoder, learned: State) -> None:
        """learned: mean [F], scale [F], classes [num_classes, F] and class_softness [], all float32."""
        self.encoder, self.settings = encoder, encoder.settings
        self.learned = learned
        self._boxes = torch.tensor([box for grid in self.settings.grids for box in _boxes(grid, self.settings.map)])

    @property
    def feature_size(self) -> int:
        return self.settings.feature_size

    @property
    def num_classes(self) -> int:
        return self.settings.num_classes

    @property
    def working_side(self) -> int:
        return self.encoder.working_side

    @functools.cached_property
    def fingerprint(self) -> str:
        return extractor_file.fingerprint(self.settings, self._tensors())

    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """One `Regions` per image: the fine grid row by row, then the coarse one; float16 features of unit scale."""
        if not images:
            return []
        features_NRF = _standard(self.encoder.cells(images), self.learned["mean"], self.learned["scale"])
        codebook = self.learned["classes"], self.learned["class_softness"]
        return regions_of(self._boxes, features_NRF, *codebook, stored_classes=self.settings.stored_classes)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `extractor.safetensors` into the folder, four bytes per parameter. Returns its path."""
        return extractor_file.write(folder, kind=KIND, settings=self.settings, tensors=self._tensors())

    def _tensors(self) -> State:
        network = {f"{_PREFIX}{name}": value for name, value in self.encoder.network.state_dict().items()}
        return {**network, **self.learned}


def from_weights(path: Path) -> VisionEncoder:
    """The encoder in a folder saved by transformers, by itself or as part of a model (CLIP, SigLIP).

    Raises:
        UserError: no such folder, files missing, or a model whose output is not a map of patches.
    """
    config, pixels, state = vision_folder.read(path)
    network = vision_folder.build(config, where=str(path))
    fill(network, state, where=str(path))
    map_FHW = _probed(network.eval(), pixels, where=str(path))
    for value in network.state_dict().values():  # missing in the folder and not needed, mostly a pooler
        value.nan_to_num_()
    return VisionEncoder(VisionSettings(config, pixels, (map_FHW.shape[1], map_FHW.shape[2]), len(map_FHW)), network)


def of_stored(stored: StoredExtractor) -> VisionExtractor:
    """The extractor in a file.

    Raises:
        UserError: settings or parameters that do not fit.
    """
    where = str(stored.file)
    settings = from_dict(VisionSettings, stored.settings, where=f"settings in {where}")
    settings.check(where)
    network = vision_folder.build(settings.encoder, where=where)
    encoder_names = [name for name in stored.tensors if name.startswith(_PREFIX)]
    fill(network, {name.removeprefix(_PREFIX): stored.tensors[name] for name in encoder_names}, where=where)
    size = settings.feature_size
    shapes = {"mean": (size,), "scale": (size,), "classes": (settings.num_classes, size), "class_softness": ()}
    learned = {name: stored.tensors[name] for name in shapes if name in stored.tensors}
    if {name: tuple(value.shape) for name, value in learned.items()} != shapes:
        raise UserError(f"the parameters in {where} do not fit its settings")
    return VisionExtractor(VisionEncoder(settings, network), learned)


@torch.inference_mode()
def _probed(network: torch.nn.Module, pixels: Pixels, *, where: str) -> torch.Tensor:
    """[F, H, W] patches of an image of noise.

    Raises:
        UserError: images of this size are refused, or the map is missing, depends on a missing parameter, or is random.
    """
    noise = np.random.default_rng(0).integers(0, 256, (pixels.height, pixels.width, 3), dtype=np.uint8)
    with vision_folder.in_one_sentence(
        f"the encoder in {where} does not take pictures of {pixels.height} x {pixels.width}"
    ):
        first, second = (vision_folder.patches(network, pixels.of([Image.fromarray(noise)]))[0] for _ in range(2))
    if not bool(first.isfinite().all()):
        lacking = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
        named = f"{lacking[0]} is not there, or not finite" if lacking else "its numbers overflow"
        raise UserError(f"the encoder in {where} gives no finite features ({named}); save the whole model anew")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise UserError(f"the encoder in {where} masks patches by chance; use one that sees the whole picture")
    return first


def _standard(cells: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((cells - mean) / scale).clamp(-_LARGEST_FEATURE, _LARGEST_FEATURE)


def _boxes(grid: tuple[int, int], cells: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Boxes of the windows of `adaptive_avg_pool2d`, as fractions; neighbours share a row of patches if sizes do not divide."""
    rows, columns = (
        [(math.floor(i * size / side) / size, math.ceil((i + 1) * size / side) / size) for i in range(side)]
        for side, size in zip(grid, cells, strict=True)
    )
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
