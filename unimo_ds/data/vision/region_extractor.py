"""What makes regions of images: the protocols of extractors, and of those that must first learn; what they find in an image."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from unimo_ds.data.schema import Regions

_LARGEST_HALF = 65504.0


class RegionExtractor(Protocol):
    """Anything that makes regions of images."""

    @property
    def fingerprint(self) -> str:
        """Hash, in 16 hexadecimal digits, of all that decides its output."""
        ...

    @property
    def feature_size(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def working_side(self) -> int:
        """Pixels of the shorter side; a larger image adds nothing."""
        ...

    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """Regions of RGB images, in their order."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> Path: ...


class RegionLearner(abc.ABC):
    """Learns a `RegionExtractor` from images of the corpus."""

    num_images: int
    """How many images are enough."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash, in 16 hexadecimal digits, of its state before learning."""

    @property
    @abc.abstractmethod
    def working_side(self) -> int:
        """See `RegionExtractor`."""

    @abc.abstractmethod
    def learn(self, images: Iterable[Image.Image], *, seed: int) -> RegionExtractor:
        """An extractor; a function of the RGB images, their order and the seed.

        Raises:
            UserError: no images.
        """

    @abc.abstractmethod
    def became(self, extractor: RegionExtractor) -> bool:
        """Whether this learner made it, from whatever images."""


@dataclass(frozen=True)
class Found:
    """The boxes kept, on the CPU."""

    boxes: torch.Tensor
    """[R, 4] x1, y1, x2, y2 as fractions of width and height."""
    features: torch.Tensor
    """[R, F] float32"""
    probabilities: torch.Tensor
    """[R, C] over all classes, background included."""


def to_regions(found: Found, *, stored_classes: int) -> Regions:
    """Float16 features, and the most probable classes with their probabilities."""
    top = torch.topk(found.probabilities, min(stored_classes, found.probabilities.shape[1]), dim=1)
    return Regions(
        boxes=found.boxes.clamp(0, 1).numpy().astype(np.float32),
        features=found.features.clamp(-_LARGEST_HALF, _LARGEST_HALF).numpy().astype(np.float16),
        class_ids=top.indices.numpy().astype(np.int32),
        class_probabilities=top.values.clamp(0, 1).numpy().astype(np.float16),
    )
