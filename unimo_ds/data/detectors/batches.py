"""Images through a network by size: padding would let images of different sizes change each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from unimo_ds.data.detectors.found import Found

_IMAGES_AT_ONCE = 8


def detect_by_size(
    images: Sequence[Image.Image], detect: Callable[[Sequence[Image.Image]], Sequence[Found]]
) -> list[Found]:
    """What `detect` finds in each image, in their order; it is given a few images of one size at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.size, []).append(i)
    found: dict[int, Found] = {}
    for members in groups.values():
        for start in range(0, len(members), _IMAGES_AT_ONCE):
            part = members[start : start + _IMAGES_AT_ONCE]
            found.update(zip(part, detect([images[i] for i in part]), strict=True))
    return [found[i] for i in range(len(images))]
