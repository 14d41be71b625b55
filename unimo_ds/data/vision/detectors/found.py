"""What a detector found in one image, and the regions stored for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unimo_ds.data.schema import Regions

_LARGEST_HALF = 65504.0


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
