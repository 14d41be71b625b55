"""True captions against foils: does the model score a true caption above a nearly identical false one?

UNIMO rewrites captions to learn from such hard negatives; these benchmarks test it with foils that our rules did not write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from unimo_ds.data.inputs import ImageInput
from unimo_ds.serving import foil_files
from unimo_ds.serving.foil_files import Item
from unimo_ds.serving.images import find_images, read_image
from unimo_ds.serving.model import ServedModel
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

_AT_ONCE = 32
"""Items encoded together; bounds the images in memory."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Right:
    """Whether an item was answered correctly; ties count as wrong."""

    text: bool
    """On each image, all of its texts score above all other texts."""
    image: bool
    """For each true text, its image scores above all other images; trivially true of a single image."""

    @property
    def group(self) -> bool:
        return self.text and self.image


def judge(scores_IT: Scores, image_of_text: Sequence[int]) -> Right:
    """From the scores of an item's images (rows) and texts (columns), as in Winoground (Thrush et al. 2022, section 3)."""
    owner_T = np.asarray(image_of_text)
    own_IT = owner_T == np.arange(len(scores_IT))[:, None]
    lowest_own_I = np.where(own_IT, scores_IT, np.inf).min(1)
    highest_other_I = np.where(own_IT, -np.inf, scores_IT).max(1)
    described_T = own_IT.any(0)
    own_T = np.where(own_IT, scores_IT, np.inf).min(0)
    other_T = np.where(own_IT, -np.inf, scores_IT).max(0)
    return Right(text=bool((lowest_own_I > highest_other_I).all()), image=bool((own_T > other_T)[described_T].all()))


def metrics(items: Sequence[Item], right: Sequence[Right], prefix: str) -> dict[str, float]:
    """Fraction of items answered correctly, per category, and the mean over categories; `image` and `group` only if some item has
    several images."""
    asks = ("text", "image", "group") if any(len(item.images) > 1 for item in items) else ("text",)
    categories = np.array([item.category for item in items])
    found: dict[str, float] = {}
    for asked in asks:
        is_right = np.array([getattr(one, asked) for one in right])
        means = {
            category: float(is_right[categories == category].mean()) for category in np.unique(categories).tolist()
        }
        found |= {f"{prefix}/{asked}/{category}": mean for category, mean in means.items()}
        found[f"{prefix}/{asked}/mean"] = float(np.mean(list(means.values())))
    return found


def measure(
    model: ServedModel, benchmark: str, data: Path, *, images: Sequence[Path], skip_missing: bool = False
) -> dict[str, Any]:
    """Evaluate on a benchmark of `foil_files.FORMATS`, with single encodings and, if the model was trained with them, joint ones.

    images: folders of its images. skip_missing: leave out items whose images are missing.

    Raises:
        UserError: damaged files, or images that are missing or cannot be read.
    """
    asked = foil_files.read(benchmark, data)
    paths = locate({name for item in asked for name in item.images}, images)
    items = [item for item in asked if all(name in paths for name in item.images)]
    if not items or (len(items) < len(asked) and not skip_missing):
        missing = next(name for item in asked for name in item.images if name not in paths)
        cure = "" if not items else ", or leave such items out with --skip-missing"
        raise UserError(
            f"{len(asked) - len(items):,} of {len(asked):,} items show an image that is not in {', '.join(map(str, images))} "
            f"(the first: {missing}); give the folders that hold them with --images{cure}"
        )
    items.sort(key=lambda item: item.images)  # those of an image together
    ways = {"single": _single, "joint": _joint} if model.source.config.contrast.encodes_jointly else {"single": _single}
    right: dict[str, list[Right]] = {way: [] for way in ways}
    batches = list(batched(items, _AT_ONCE))
    console = Console(stderr=True)
    for some in track(batches, "encoding", console=console, transient=True, disable=not console.is_terminal):
        inputs = _image_inputs(model, some, paths)
        for way, score in ways.items():
            scores = score(model, some, inputs)
            right[way] += [judge(one, item.image_of_text) for item, one in zip(some, scores, strict=True)]
    found: dict[str, float] = {}
    for way, answers in right.items():
        found |= metrics(items, answers, way)
    counted = [item.category for item in items]
    return {
        "task": "foils",
        "benchmark": benchmark,
        "checkpoint": str(model.source.files.weights.parent),
        "data": str(data),
        "items": len(items),
        "items_left_out": len(asked) - len(items),
        "items_of_category": {category: counted.count(category) for category in dict.fromkeys(counted)},
        "metrics": found,
    }


def locate(names: Iterable[str], folders: Sequence[Path]) -> dict[str, Path]:
    """Files of these names in the folders: by the path relative to a folder, else by file name, else by file name without suffix.
    A name shared by several files matches none.

    Raises:
        UserError: no image in the folders.
    """
    folders = [Path(os.path.abspath(folder)) for folder in folders]  # `a` and `b/../a` hold the same files
    of_path: dict[str, Path | None] = {}
    of_name: dict[str, Path | None] = {}
    of_stem: dict[str, Path | None] = {}
    for path in find_images(folders):
        relative = {path.relative_to(folder).as_posix() for folder in folders if path.is_relative_to(folder)}
        for table, spellings in ((of_path, relative), (of_name, {path.name}), (of_stem, {path.stem})):
            for spelling in spellings:
                table[spelling] = path if table.get(spelling, path) == path else None
    found = {}
    for name in names:
        last = Path(name).name
        looked_up = ((of_path, name), (of_name, last), (of_stem, last))
        file = next((table[spelling] for table, spelling in looked_up if spelling in table), None)
        if file is not None:
            found[name] = file
    return found


def _image_inputs(model: ServedModel, items: Sequence[Item], paths: Mapping[str, Path]) -> dict[str, ImageInput]:
    """Model inputs by image name, each image once."""
    names = list(dict.fromkeys(name for item in items for name in item.images))
    regions = model.regions([read_image(paths[name], shrink_to=model.shrink_to) for name in names])
    return {name: model.input_of(found) for name, found in zip(names, regions, strict=True)}


def _single(model: ServedModel, items: Sequence[Item], inputs: Mapping[str, ImageInput]) -> list[Scores]:
    """For each item, cosines of its images and texts encoded alone."""
    texts = list(dict.fromkeys(text for item in items for text in item.texts))
    image_row = {name: row for row, name in enumerate(inputs)}
    text_row = {text: row for row, text in enumerate(texts)}
    scores = model.region_vectors(list(inputs.values())) @ model.text_vectors(texts).T
    return [
        scores[np.ix_([image_row[name] for name in item.images], [text_row[text] for text in item.texts])]
        for item in items
    ]


def _joint(model: ServedModel, items: Sequence[Item], inputs: Mapping[str, ImageInput]) -> list[Scores]:
    """For each item, cosines of each of its images with each of its texts, encoded together."""
    pairs = [(inputs[name], text) for item in items for name in item.images for text in item.texts]
    ends = np.cumsum([len(item.images) * len(item.texts) for item in items])
    parts = np.split(model.joint_scores(pairs), ends[:-1])
    return [scores.reshape(len(item.images), -1) for item, scores in zip(items, parts, strict=True)]


def to_text(result: dict[str, Any]) -> str:
    """A table for people."""
    left_out = f", {result['items_left_out']:,} left out for missing images" if result["items_left_out"] else ""
    lines = [f"{result['checkpoint']} on {result['benchmark']}: {result['items']:,} items{left_out}"]
    lines += [f"  {name:<40} {100 * value:6.2f} %" for name, value in result["metrics"].items()]
    return "\n".join(lines)
