"""Samples of data folders as items of a collection: images, encoded from their stored regions, and texts."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.schema import Sample
from unimo_ds.data.vision import images
from unimo_ds.data.vision.images import BadImage
from unimo_ds.finetune.images import check_images
from unimo_ds.serving.images import read_image
from unimo_ds.serving.index import Item, Vectors
from unimo_ds.serving.model import ServedModel
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import for_terminal

_open = functools.lru_cache(maxsize=4)(Corpus.open)


def open_folder(folder: Path, model: ServedModel) -> Corpus:
    """
    Raises:
        UserError: not a data folder, or its regions come from another extractor than the model's.
    """
    corpus = check_images(Corpus.open(folder), model.source.config, tokenizer=None)
    own, theirs = model.source.extractor, corpus.manifest.extractor
    if own is not None and theirs is not None and own.fingerprint != theirs.fingerprint:
        raise UserError(
            f"{folder} holds regions of another extractor than the model's; import it with `--like` the training data"
        )
    return corpus


def encode(
    corpus: Corpus, numbers: Iterable[int], model: ServedModel, *, skip_bad: bool
) -> Iterator[tuple[list[Item], Vectors]]:
    """Items and vectors of some samples, each encoded alone: first images (also those of pairs), then text samples.

    Raises:
        UserError: a damaged sample, unless `skip_bad` (then stderr names it).
    """
    samples = [(number, one) for number in numbers if (one := _read(corpus, number, skip_bad)) is not None]
    shown = [(number, one.key, one.regions) for number, one in samples if one.regions is not None]
    if shown:
        folder = Path(corpus.location).resolve()
        vectors = model.region_vectors([model.input_of(regions) for *_, regions in shown])
        yield [Item(f"{folder}/{key}", sample=number) for number, key, _ in shown], vectors
    texts = [one.text for _, one in samples if one.text is not None]
    if texts:
        yield [Item(text=text) for text in texts], model.text_vectors(texts)


def _read(corpus: Corpus, number: int, skip_bad: bool) -> Sample | None:
    try:
        return corpus.read(number)
    except CorruptSample as error:
        if not skip_bad:
            raise UserError(f"sample {error.key}: {error.reason} (--skip-bad leaves such samples out)") from None
        print(for_terminal(f"left out: {error.key}: {error.reason}"), file=sys.stderr)
        return None


def read_picture(item: Item, *, shrink_to: int | None = None) -> Image.Image:
    """An item as an upright RGB image, from its file or shard. shrink_to: shorter side in pixels that suffices.

    Raises:
        UserError: missing, damaged, or a sample imported without its JPEG.
    """
    assert item.image is not None
    path = Path(item.image)
    if item.sample is None:
        return read_image(path, shrink_to=shrink_to)
    try:
        jpeg = _open(path.parent).read_jpeg(item.sample)
        if jpeg is None:
            raise UserError(f"{path.name} has no picture in its shard; import with --keep-images to see it")
        return images.decode(jpeg, shrink_to=shrink_to)
    except (CorruptSample, BadImage, IndexError) as error:
        raise UserError(f"the picture of {path.name} cannot be read: {error}") from None
