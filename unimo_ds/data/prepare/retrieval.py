"""`unimo prepare retrieve`: related texts and images of every pair, from the single-modal samples of the same folder.

Texts: sentences of the text samples by TF-IDF similarity to all captions of the pair. Images: image samples whose detected
classes overlap most with the pair's, ordered by the similarity of their features (paper section 2.1, unimo.md 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data import folder as folders
from unimo_ds.data import manifest, shards
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import word_classes
from unimo_ds.data.prepare.importing import progress
from unimo_ds.data.prepare.rewriting import similar_rows
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.schema import Kind, Regions
from unimo_ds.data.shards import StoredSample
from unimo_ds.utils.errors import UserError

MAX_SENTENCES = 400_000
MAX_IMAGES = 400_000
"""Candidates held in memory; of a larger collection every second, third, ... one is taken."""
_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 4, 60
"""In words: fragments relate to everything, and long texts cost a full sequence each."""
_CONSIDERED = 5
"""Times the wanted number of images that class overlap passes on to feature similarity."""
_BLOCK = 512
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ImageCollection:
    """What is compared of the image samples."""

    references: tuple[tuple[str, int], ...]
    """(shard, index within it)"""
    classes: Floats
    """[n, C] unit vectors of summed class probabilities."""
    features: Floats
    """[n, F] unit vectors of mean region features."""


def retrieve_folder(folder: Path, *, number: int = 10) -> Report:
    """Store up to `number` related texts and images with every pair; earlier ones are replaced.

    Raises:
        UserError: not a data folder, a damaged one, or one without pairs or without single-modal samples.
    """
    listed = manifest.load_manifest(folder)
    if not listed.totals.get("pair"):
        raise UserError(f"{folder} holds no pairs; import some with `unimo prepare import --kind pairs`")
    if not listed.totals.get("text") and not listed.totals.get("image"):
        raise UserError(
            f"{folder} holds no texts and no images to retrieve from; import some with --kind texts or images"
        )
    tokenizer = tokenizers.load(folder / listed.tokenizer.file)
    sentences = _sentences(folder, listed)
    images = _image_collection(folder, listed)
    report = Report({"sentences searched": len(sentences), "images searched": len(images.references)})
    for entry in listed.shards:
        if entry.kinds.get("pair"):
            _retrieve_shard(folder / entry.file, sentences, images, listed.num_region_classes, number, report)
    folders.finish_folder(folder, tokenizer=tokenizer, tokenizer_file=listed.tokenizer.file)
    return report


def related_images(classes: Floats, features: Floats, images: ImageCollection, *, number: int) -> list[list[int]]:
    """For each query, up to `number` images: most class overlap first chosen, then ordered by feature similarity.

    classes: [n, C], features: [n, F], unit rows. Ties go to the earlier image.
    """
    count = len(images.references)
    if not count:
        return [[] for _ in classes]
    found: list[list[int]] = []
    for start in range(0, len(classes), _BLOCK):
        # Rounded, so that the choice does not hang on the last bit of a sum.
        overlap = np.round(classes[start : start + _BLOCK] @ images.classes.T, 5)
        for row, one in enumerate(overlap):
            considered = np.argsort(-one, kind="stable")[: _CONSIDERED * number]
            considered = considered[one[considered] > 0]
            likeness = np.round(images.features[considered] @ features[start + row], 5)
            found.append(considered[np.lexsort((considered, -likeness))][:number].tolist())
    return found


def distinct(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts without those whose words all occur in one kept before, or the other way round."""
    kept: dict[str, set[str]] = {}
    for text in texts:
        words = set(word_classes.words_of(text))
        if not any(words <= other or other <= words for other in kept.values()):
            kept[text] = words
    return tuple(kept)


def summarise(regions: Regions, *, num_classes: int) -> tuple[Floats, Floats]:
    """Class vector [C] and mean feature [F] of an image, both of unit length."""
    classes = np.zeros(num_classes, np.float32)
    np.add.at(classes, regions.class_ids.ravel(), regions.class_probabilities.astype(np.float32).ravel())
    features = regions.features.astype(np.float32).mean(0)
    return _unit(classes), _unit(features)


def _unit(vector: Floats) -> Floats:
    result: Floats = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return result


def _retrieve_shard(
    path: Path, sentences: Sequence[str], images: ImageCollection, num_classes: int, number: int, report: Report
) -> None:
    queries: dict[int, str] = {}
    summaries: list[tuple[Floats, Floats]] = []
    for position, stored in enumerate(shards.read_shard(path)):
        if stored.sample.kind is Kind.PAIR and stored.sample.regions is not None:
            queries[position] = " ".join(caption.text for caption in stored.sample.captions)
            summaries.append(summarise(stored.sample.regions, num_classes=num_classes))
    classes, features = (np.stack(parts) for parts in zip(*summaries, strict=True))
    image_rows = related_images(classes, features, images, number=number)
    text_rows = progress(
        similar_rows(list(queries.values()), sentences, number=3 * number), label=path.name, total=len(queries)
    )
    found = dict(zip(queries, zip(text_rows, image_rows, strict=True), strict=True))

    def transform(position: int, stored: StoredSample) -> StoredSample:
        if position not in found:
            return stored
        of_texts, of_images = found[position]
        report.count("pairs")
        texts = distinct([sentences[i] for i in of_texts])[:number]
        report.count("related texts", len(texts))
        report.count("related images", len(of_images))
        sample = replace(
            stored.sample,
            related_texts=texts,
            related_images=tuple(images.references[i] for i in of_images),
        )
        return replace(stored, sample=sample)

    shards.rewrite_shard(path, transform)


def _samples(folder: Path, listed: manifest.Manifest, kind: Kind) -> Iterator[tuple[str, int, StoredSample]]:
    for entry in listed.shards:
        if entry.kinds.get(kind.name.lower()):
            for position, stored in enumerate(shards.read_shard(folder / entry.file)):
                if stored.sample.kind is kind:
                    yield entry.file, position, stored


def _stride(total: int, most: int) -> int:
    return max(1, -(-total // most))


def _sentences(folder: Path, listed: manifest.Manifest) -> list[str]:
    """Distinct sentences of a fit length from the text samples."""
    stride = _stride(listed.totals.get("text", 0), MAX_SENTENCES)
    sentences: dict[str, None] = {}
    for number, (_, _, stored) in enumerate(_samples(folder, listed, Kind.TEXT)):
        if number % stride or len(sentences) >= MAX_SENTENCES:
            continue
        for sentence in _SENTENCE_BREAK.split(stored.sample.text or ""):
            if _SHORTEST_SENTENCE <= len(word_classes.words_of(sentence)) <= _LONGEST_SENTENCE:
                sentences[sentence.strip()] = None
    return list(sentences)


def _image_collection(folder: Path, listed: manifest.Manifest) -> ImageCollection:
    stride = _stride(listed.totals.get("image", 0), MAX_IMAGES)
    references, classes, features = [], [], []
    for number, (shard, position, stored) in enumerate(_samples(folder, listed, Kind.IMAGE)):
        if number % stride == 0 and stored.sample.regions is not None:
            one, other = summarise(stored.sample.regions, num_classes=listed.num_region_classes)
            references.append((shard, position))
            classes.append(one)
            features.append(other)
    shape = (0, max(listed.num_region_classes, 1))
    return ImageCollection(
        tuple(references),
        np.stack(classes) if classes else np.zeros(shape, np.float32),
        np.stack(features) if features else np.zeros((0, max(listed.feature_size, 1)), np.float32),
    )
