"""Image files of a user: read, checked, named in messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unimo_ds.data.vision import images
from unimo_ds.data.vision.images import BadImage
from unimo_ds.utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_image(path: Path, *, shrink_to: int | None = None) -> Image.Image:
    """The upright RGB image of a file. shrink_to: shorter side that is enough.

    Raises:
        UserError: no such file, or no JPEG, PNG or WebP.
    """
    try:
        return images.decode(path.read_bytes(), shrink_to=shrink_to)
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}; give a JPEG, PNG or WebP file") from None
    except BadImage as error:
        raise UserError(f"{path} is not an image that can be read: {error}; give a JPEG, PNG or WebP file") from None


def find_images(places: Sequence[Path]) -> list[Path]:
    """The image files among `places`, folders searched to any depth, in the order of their names.

    Raises:
        UserError: a place that is not there, or no image at all.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"no image or folder at {place}")
    if not found:
        raise UserError(f"no image ({', '.join(SUFFIXES)}) in {', '.join(map(str, places))}")
    return found
