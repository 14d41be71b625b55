"""Random crops: each use of an image shows another part. Nothing is mirrored, as captions mention left and right."""

from __future__ import annotations

import math

from unimo_ds.data.draws import Uniforms
from unimo_ds.utils.seed import mix

Crop = tuple[float, float, float, float]
"""left, top, right, bottom, as fractions of width and height."""

_CROP = 0x63726F70
_MOST_STRETCHED = 4 / 3
"""A crop's aspect ratio, relative to its image's, lies between this and one over this."""


def draw(key: int, *, smallest: float) -> Crop:
    """A crop of `smallest` to 1 of the image's area, a function of the key (of a use).

    Uses only correctly rounded operations, so that all machines draw the same.
    """
    numbers = Uniforms(mix(key, _CROP))
    side = math.sqrt(smallest + (1 - smallest) * next(numbers))
    most = min(math.sqrt(_MOST_STRETCHED), 1 / side)
    stretch = 1 + (most - 1) * next(numbers)
    width, height = min(side * stretch, 1.0), side / stretch
    if next(numbers) < 0.5:
        width, height = height, width
    left, top = (1 - width) * next(numbers), (1 - height) * next(numbers)
    return left, top, min(left + width, 1.0), min(top + height, 1.0)
