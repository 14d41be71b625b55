"""Zero-shot classification of images: one or more sentences describe each class, and each image gets the nearest class.

As in CLIP (Radford et al. 2021, section 3.1), a class's vector is the mean of its sentences' vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.serving.images import find_images, read_image
from unimo_ds.serving.model import ServedModel, Vectors
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

PLACE = "{}"
DEFAULT_PROMPTS = ("{}", "a photo of a {}", "a picture of {}")
_AT_ONCE = 32


@dataclass(frozen=True)
class LabelledImages:
    """A folder with one folder per class."""

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]


def open_classes(folder: Path) -> LabelledImages:
    """Images in one folder per class; `_` in a folder's name stands for a space.

    Raises:
        UserError: no such folder, fewer than two classes, or a class without an image.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give one with a folder of images for each class")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(f"{folder} has {len(folders)} folders; classification needs a folder of images for each class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, one in enumerate(folders):
        found = find_images([one])
        paths += found
        labels += [label] * len(found)
    return LabelledImages(tuple(one.name.replace("_", " ") for one in folders), tuple(paths), tuple(labels))


def class_vectors(model: ServedModel, classes: Sequence[str], prompts: Sequence[str]) -> Vectors:
    """[C, D] of length 1.

    Raises:
        UserError: a prompt without `{}`.
    """
    for prompt in prompts:
        if PLACE not in prompt:
            raise UserError(f"the prompt {prompt!r} has no {PLACE} where the class goes")
    texts = [prompt.replace(PLACE, name) for name in classes for prompt in prompts]
    means = model.text_vectors(texts).reshape(len(classes), len(prompts), -1).mean(1)
    vectors: Vectors = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return vectors


def measure(scores_NC: NDArray[np.float32], labels: Sequence[int]) -> dict[str, float]:
    """Top-1 and top-5 accuracy, mean accuracy over classes, and chance. A tie counts as a miss for all but the first class."""
    truth = np.asarray(labels)
    order = np.argsort(-scores_NC, axis=1, kind="stable")
    hits = order == truth[:, None]
    first = hits[:, 0]
    per_class = [first[truth == label].mean() for label in np.unique(truth)]
    return {
        "accuracy": float(first.mean()),
        "accuracy_top5": float(hits[:, :5].any(1).mean()),
        "accuracy_mean_of_classes": float(np.mean(per_class)),
        "accuracy_chance": 1 / scores_NC.shape[1],
    }


def classify(model: ServedModel, data: Path, *, prompts: Sequence[str] = DEFAULT_PROMPTS) -> dict[str, Any]:
    """Measure the model on `open_classes(data)`. Returns counts, `metrics`, and the accuracy of each class.

    Raises:
        UserError: as `open_classes` and `class_vectors`, or an image that cannot be read.
    """
    images = open_classes(data)
    vectors = class_vectors(model, images.classes, prompts)
    scores = np.concatenate(
        [
            model.image_vectors([read_image(path, shrink_to=model.shrink_to) for path in paths]) @ vectors.T
            for paths in batched(images.paths, _AT_ONCE)
        ]
    )
    chosen, truth = scores.argmax(1), np.asarray(images.labels)
    return {
        "task": "classification",
        "checkpoint": str(model.source.files.weights.parent),
        "data": str(data),
        "images": len(images.paths),
        "classes": len(images.classes),
        "prompts": list(prompts),
        "metrics": measure(scores, images.labels),
        "accuracy_of_class": {
            name: float((chosen[truth == label] == label).mean()) for label, name in enumerate(images.classes)
        },
    }


def to_text(result: dict[str, Any]) -> str:
    """A readable table."""
    lines = [f"{result['checkpoint']} on {result['data']}: {result['images']:,} images of {result['classes']} classes"]
    lines += [f"  {name:<26} {100 * value:6.2f} %" for name, value in result["metrics"].items()]
    return "\n".join(lines)
