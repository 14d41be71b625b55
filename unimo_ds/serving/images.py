"""Reading and finding a user's image files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unimo_ds.data.vision import images
from unimo_ds.data.vision.images import BadImage
from unimo_ds.utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_image(path: Path, *, shrink_to: int | None = None) -> Image.Image:
    """The file as an upright RGB image. shrink_to: shorter side in pixels that suffices.

    Raises:
        UserError: no such file, or not a JPEG, PNG or WebP.
    """
    try:
        return images.decode(path.read_bytes(), shrink_to=shrink_to)
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}; give a JPEG, PNG or WebP file") from None
    except BadImage as error:
        raise UserError(f"{path} is not an image that can be read: {error}; give a JPEG, PNG or WebP file") from None


def find_images(places: Sequence[Path]) -> list[Path]:
    """The image files among `places`; folders are searched to any depth, in order of names.

    Raises:
        UserError: a place that does not exist, or no image at all.
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
