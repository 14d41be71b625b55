"""A region extractor that cuts patches of pixels (`patches.cut`): no network, no weights, nothing learned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unimo_ds.config import from_dict
from unimo_ds.data.schema import PatchGrid, Regions
from unimo_ds.data.vision import extractor_file, patches
from unimo_ds.data.vision.extractor_file import StoredExtractor
from unimo_ds.utils.errors import UserError

KIND = "patches"
IMAGE_SIDE, PATCH_SIDE = 224, 16
"""Default pixels per side of an image and of a patch: ViT's."""


class PatchExtractor:
    """Cuts every image by one grid."""

    num_classes = 1
    """All patches have the same class, from which nothing is learned."""

    def __init__(self, grid: PatchGrid) -> None:
        self.grid = grid

    @property
    def fingerprint(self) -> str:
        return extractor_file.fingerprint(self.grid, {})

    @property
    def feature_size(self) -> int:
        return self.grid.feature_size

    @property
    def working_side(self) -> int:
        return self.grid.working_side

    def extract(self, images: Sequence[Image.Image]) -> list[Regions]:
        """Patches of RGB images."""
        return [patches.cut(image, self.grid) for image in images]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `extractor.safetensors` into the folder: only sizes. Returns its path."""
        return extractor_file.write(folder, kind=KIND, settings=self.grid, tensors={})


def ready_made(*, image_side: int | None = None, patch_side: int | None = None) -> PatchExtractor:
    """An extractor for square images.

    Raises:
        UserError: sides that do not fit together, or more or larger patches than a sample may have.
    """
    side = PATCH_SIDE if patch_side is None else patch_side
    whole = IMAGE_SIDE if image_side is None else image_side
    if side < 1 or whole < 1 or whole % side:
        raise UserError(f"--image-side {whole} is no multiple of --patch-side {side}; such as 224 of 16")
    return _checked(PatchGrid(whole // side, whole // side, side), f"--image-side {whole} with --patch-side {side}")


def of_stored(stored: StoredExtractor) -> PatchExtractor:
    """The extractor in a file.

    Raises:
        UserError: its settings are not a grid.
    """
    settings = f"settings in {stored.file}"
    return _checked(from_dict(PatchGrid, stored.settings, where=settings), settings)


def grid_in(file: Path) -> PatchGrid | None:
    """The grid of the extractor in a file; None if it is of another kind.

    Raises:
        UserError: missing or damaged.
    """
    return of_stored(extractor_file.read(file)).grid if extractor_file.kind_of(file) == KIND else None


def _checked(grid: PatchGrid, where: str) -> PatchExtractor:
    if grid.problem:
        raise UserError(f"{where}: {grid.problem}")
    return PatchExtractor(grid)
