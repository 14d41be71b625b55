"""Loads region extractors of every kind, from the file in a data folder or from a network's weights.

A new kind is a module with `KIND`, `of_stored`, and either `from_weights`, for a network trained elsewhere, or `ready_made`, if
it needs no weights; and a line here. The last two may return a `RegionLearner`, which must first see images of the corpus.
Modules are imported only when needed, since a detector imports its network.
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.data.vision import extractor_file
from unimo_ds.data.vision.region_extractor import RegionExtractor, RegionLearner
from unimo_ds.utils.errors import UserError, nearest_name
from unimo_ds.utils.options import option

_MODULES = {
    "grid": "unimo_ds.data.vision.grid",
    "patches": "unimo_ds.data.vision.patch_extractor",
    "vision-encoder": "unimo_ds.data.vision.vision_encoder",
    "torchvision": "unimo_ds.data.vision.detectors.torchvision_rcnn",
    "bottom-up": "unimo_ds.data.vision.detectors.bottom_up",
}
KINDS = tuple(_MODULES)
_NETWORKS = {"vision-encoder": "folder", "torchvision": "file", "bottom-up": "file"}
"""Kinds that have weights, and whether these are a file or a folder."""


_WITH_SIZES = "patches"


@dataclass(frozen=True, kw_only=True)
class ExtractorChoice:
    """Which extractor is to make the regions of images; options of every stage that makes some."""

    extractor: Path | None = option(
        None,
        "how regions are made: grid (learned from the images); patches (of pixels, cut from the stored JPEG when it is read); "
        "vision-encoder (CLIP, SigLIP, DINOv2, ...), torchvision or bottom-up, each with --weights; or another data folder, for "
        "its extractor (default: the folder's own; in a new one grid)",
    )
    weights: Path | None = option(
        None,
        "a detector's file (safetensors, or a state dict of torch), or a vision encoder's folder (save_pretrained)",
    )
    image_side: int | None = option(None, "for patches: scale images to this side (default 224)", metavar="PIXELS")
    patch_side: int | None = option(None, "side of a patch, a divisor of --image-side (default 16)", metavar="PIXELS")

    def check(self) -> None:
        """Cheap, so that a whole plan can be checked before anything is made.

        Raises:
            UserError: neither a kind nor a path, or sizes that do not fit the extractor or together.
        """
        if self.extractor is not None and self._kind is None and not self.extractor.exists():
            known = f"nor one of {', '.join(KINDS)}{nearest_name(self.extractor.name, KINDS)}"
            raise UserError(f"--extractor {self.extractor} is neither a file or folder {known}")
        if self._sizes and self._kind != _WITH_SIZES:
            option = next(iter(self._sizes)).replace("_", "-")
            raise UserError(f"--{option} is a size of --extractor {_WITH_SIZES}; add that, or leave --{option} out")
        if self._sizes:
            _module(_WITH_SIZES).ready_made(**self._sizes)

    def made(self) -> RegionExtractor | RegionLearner | None:
        """None: nothing is chosen.

        Raises:
            UserError: as `check`; a kind that needs weights without any, weights without a kind, or files that cannot be read.
        """
        self.check()
        found: RegionExtractor | RegionLearner
        if self.weights is None:
            if self.extractor is None:
                return None
            if self._kind is None:
                return load(self.extractor)
            if self._kind in _NETWORKS:
                place = _NETWORKS[self._kind]
                raise UserError(f"--extractor {self._kind} needs its weights; name their {place} with --weights")
            found = _module(self._kind).ready_made(**self._sizes)
            return found
        if self.extractor is None:
            raise UserError(
                f"--weights {self.weights} needs --extractor, to say whose they are: {' or '.join(_NETWORKS)}"
            )
        if self._kind not in _NETWORKS:
            raise UserError(f"--extractor {self.extractor} has no weights; leave --weights out")
        found = _module(self._kind).from_weights(self.weights)
        return found

    @property
    def _kind(self) -> str | None:
        """None: it is a file or folder."""
        return str(self.extractor) if str(self.extractor) in KINDS else None

    @property
    def _sizes(self) -> dict[str, int]:
        both = {"image_side": self.image_side, "patch_side": self.patch_side}
        return {name: value for name, value in both.items() if value is not None}


def load(path: str | os.PathLike[str]) -> RegionExtractor:
    """The extractor in a file, or in `extractor.safetensors` of a folder.

    Raises:
        UserError: missing, damaged, or of a kind that makes no regions of photographs.
    """
    kind = extractor_file.kind_of(Path(path))
    if kind not in _MODULES:
        raise UserError(
            f"{extractor_file.file_at(path)} does not hold a grid extractor or a network, "
            "so it cannot make regions of photographs"
        )
    found: RegionExtractor = _module(kind).of_stored(extractor_file.read(path))
    return found


@functools.lru_cache(maxsize=2)
def loaded(path: Path, fingerprint: str) -> RegionExtractor:
    """`load`, cached for the next shard. fingerprint: of the extractor, since the file may be rewritten."""
    return load(path)


def makes_regions(path: str | os.PathLike[str]) -> bool:
    """Whether `load` takes the file. Drawn scenes have an extractor that is given their boxes."""
    try:
        return extractor_file.kind_of(Path(path)) in _MODULES
    except UserError:
        return False


def is_network(path: str | os.PathLike[str]) -> bool:
    """Whether the extractor in a file, or in a folder, is a network."""
    return extractor_file.kind_of(Path(path)) in _NETWORKS


def _module(kind: str) -> Any:
    return importlib.import_module(_MODULES[kind])
