"""Base of all detectors: a network whose regions depend only on their image, stored in one file with its settings."""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from PIL import Image

from unimo_ds.data.schema import Regions
from unimo_ds.data.vision import extractor_file
from unimo_ds.data.vision.detectors.choosing import Choosing
from unimo_ds.data.vision.region_extractor import Found, to_regions
from unimo_ds.utils.machine import worker_device

_IMAGES_AT_ONCE = 8


class DetectorSettings(Protocol):
    @property
    def choosing(self) -> Choosing: ...

    @property
    def stored_classes(self) -> int: ...


Settings = TypeVar("Settings", bound=DetectorSettings)
Network = TypeVar("Network", bound=torch.nn.Module)


class Detector(abc.ABC, Generic[Settings, Network]):
    """A `RegionExtractor` with a network."""

    kind: ClassVar[str]

    def __init__(self, settings: Settings, network: Network, device: torch.device | None = None) -> None:
        settings.choosing.check()
        self.settings = settings
        self.device = device or worker_device()
        self.network = network.to(self.device).eval().requires_grad_(False)

    @functools.cached_property
    def fingerprint(self) -> str:
        return extractor_file.fingerprint(self.settings, self.network.state_dict())

    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """One `Regions` per image."""
        return [to_regions(one, stored_classes=self.settings.stored_classes) for one in self.detect(images)]

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[Found]:
        """The network's full result for each image. Only images of one size are batched, a few at a time: with padding, images
        of different sizes would affect each other."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(image.size, []).append(i)
        found: dict[int, Found] = {}
        for members in groups.values():
            for start in range(0, len(members), _IMAGES_AT_ONCE):
                part = members[start : start + _IMAGES_AT_ONCE]
                found.update(zip(part, self._detect([images[i] for i in part]), strict=True))
        return [found[i] for i in range(len(images))]

    @abc.abstractmethod
    def _detect(self, images: Sequence[Image.Image]) -> Sequence[Found]:
        """The same for images of one size."""

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `extractor.safetensors` into the folder (210 MB for ResNet-101). Returns its path."""
        return extractor_file.write(folder, kind=self.kind, settings=self.settings, tensors=self.network.state_dict())
