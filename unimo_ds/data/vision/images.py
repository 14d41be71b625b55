"""Decodes untrusted image bytes: the header is read and the size checked before pixels are decoded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64 * 2**20
"""Largest image that is decoded, in pixels (a 64-megapixel photograph); a decompression bomb is refused from its header."""
_LONGEST_SIDE = 65500
"""Of libjpeg."""
_MOST_SCANS = 5000
"""Of a JPEG: a scan of a few bytes may go over all of the pixels. Cameras write about ten."""
_SCAN = b"\xff\xda"
"""Its mark. Pixels never contain it; of what else a file holds, a megabyte does some sixteen times by chance."""
_BYTES_OF_SCAN = 10
"""The fewest."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""Only these decoders are ever tried."""
# Raised by Pillow's decoders on damaged bytes: its own errors are OSError and SyntaxError, the others leak from parsing.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(ValueError):
    """Bytes that are not an image, or not safe to decode. The message says why."""


def decode(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS, shrink_to: int | None = None) -> Image.Image:
    """The upright RGB image of JPEG, PNG or WebP bytes.

    shrink_to: length of the shorter side that is enough; much larger JPEGs are then decoded at a fraction of their size.

    Raises:
        BadImage: not an image of these formats, truncated, larger than `max_pixels`, or a JPEG of thousands of scans.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large image, and of every damaged tag of its EXIF data
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(data, image, max_pixels)
            if shrink_to is not None:
                # libjpeg can decode at 1/2, 1/4 or 1/8 of the size; it never goes below the size requested.
                image.draft("RGB", (shrink_to, shrink_to))
            image.load()
            return upright(image)
    except BadImage:
        raise
    except UnidentifiedImageError:  # its message contains a memory address
        raise BadImage("its bytes are neither JPEG, PNG nor WebP") from None
    except _DECODER_ERRORS as error:
        raise BadImage(f"{type(error).__name__}: {error}") from None


def _check_size(data: bytes | memoryview, image: Image.Image, max_pixels: int) -> None:
    """Refuses, before pixels are decoded, what would take too much memory or time. Raises BadImage."""
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than the {max_pixels} allowed")
    if min(width, height) < 1:
        raise BadImage(f"{width} x {height} pixels")
    if image.format == "JPEG" and len(data) > _MOST_SCANS * _BYTES_OF_SCAN and bytes(data).count(_SCAN) > _MOST_SCANS:
        raise BadImage(f"its pixels are in more than {_MOST_SCANS} scans")


def upright(image: Image.Image) -> Image.Image:
    """The image in RGB, rotated as its EXIF data say; the one given may be rotated in place.

    Of 16-bit grey values the upper eight bits are kept, as decoders do for 16-bit colours.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # Pillow itself would make everything above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes start like a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def encode_jpeg(image: Image.Image, *, quality: int = 92) -> bytes:
    """JPEG bytes of an RGB image.

    Raises:
        BadImage: it is too long or too high.
    """
    if max(image.size) > _LONGEST_SIDE:
        raise BadImage(f"{image.width} x {image.height} pixels, of which a JPEG holds at most {_LONGEST_SIDE} in a row")
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
