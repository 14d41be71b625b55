"""Small data folders for the tests of shards, and a tokenizer without a file to read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.schema import Caption, Kind, Level, Regions, Rewrite, Sample
from unimo_ds.data.storage import index, manifest
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.manifest import ExtractorEntry, Manifest
from unimo_ds.data.storage.shards import StoredSample, index_path, write_shards

FEATURE_SIZE, CLASSES_PER_REGION, NUM_CLASSES = 8, 2, 16


class WordTokenizer:
    """One token a word; ids are of no interest here."""

    vocabulary_size = 100

    def __init__(self, fingerprint: str = "words") -> None:
        self.fingerprint = fingerprint

    def encode_batch(self, texts: Sequence[str], /) -> list[NDArray[np.int32]]:
        return [np.arange(len(text.split()), dtype=np.int32) for text in texts]


def make_regions(number: int, *, num_regions: int = 3, feature_size: int = FEATURE_SIZE) -> Regions:
    """Regions that are a function of their number."""
    random = np.random.default_rng(number)
    corners = np.sort(random.random((num_regions, 2, 2)), axis=1).reshape(num_regions, 4)
    return Regions(
        boxes=corners.astype(np.float32),
        features=random.normal(size=(num_regions, feature_size)).astype(np.float16),
        class_ids=random.integers(0, NUM_CLASSES, (num_regions, CLASSES_PER_REGION)).astype(np.int32),
        class_probabilities=(random.random((num_regions, CLASSES_PER_REGION)) / 2).astype(np.float16),
    )


def make_pair(number: int, *, num_images: int = 4, feature_size: int = FEATURE_SIZE) -> Sample:
    """A pair with two captions, rewrites of every level, and related items."""
    first = Caption(
        f"a small rëd dog number {number}",
        (Rewrite(f"number {number} is a dog", Level.NONE, "translated"),),
        (
            Rewrite("a cat sleeps", Level.SENTENCE, "other"),
            Rewrite(f"a large cat number {number}", Level.PHRASE, "small rëd dog>large cat"),
            Rewrite(f"a small blue dog number {number}", Level.WORD, "rëd>blue"),
        ),
    )
    return Sample(
        key="",
        kind=Kind.PAIR,
        source="photos",
        regions=make_regions(number, num_regions=1 + number % 3, feature_size=feature_size),
        captions=(first, Caption(f"dog {number}")),
        related_texts=("dogs are animals", "so are cats"),
        related_images=(("images-000000.tar", number % num_images),),
    )


def make_image(number: int) -> Sample:
    return Sample(key="", kind=Kind.IMAGE, source="albums", regions=make_regions(1000 + number))


def make_text(number: int) -> Sample:
    return Sample(key="", kind=Kind.TEXT, source="books", text="word " * number + "end")


def fake_jpeg(number: int) -> bytes:
    return b"\xff\xd8" + hashlib.sha256(str(number).encode()).digest() * 4


def write_samples(folder: Path, *, num_pairs: int = 5, num_images: int = 4, num_texts: int = 3) -> None:
    """Shards of at most three samples; pairs keep their (pretended) JPEGs and notes."""
    pairs = (StoredSample(make_pair(n), fake_jpeg(n), {"file": f"{n}.jpg"}) for n in range(num_pairs))
    write_shards(folder, "pairs", pairs, max_samples=3)
    write_shards(folder, "images", (StoredSample(make_image(number)) for number in range(num_images)))
    write_shards(folder, "texts", (StoredSample(make_text(number)) for number in range(num_texts)))


def finish(folder: Path, *, tokenizer: WordTokenizer | None = None, reindex: bool = False) -> Manifest:
    (folder / "tokenizer.json").write_text('{"words": true}', encoding="utf-8")
    return finish_folder(
        folder,
        tokenizer=tokenizer or WordTokenizer(),
        extractor=ExtractorEntry("random"),
        num_region_classes=NUM_CLASSES,
        command="make test data",
        reindex=reindex,
    )


def make_folder(folder: Path) -> Path:
    """A complete folder: pairs-000000 (3), pairs-000001 (2), images-000000 (4), texts-000000 (3)."""
    write_samples(folder)
    finish(folder)
    return folder


def change_index(folder: Path, shard: str, **changes: Any) -> None:
    """Give a shard another index, with the checksum that the manifest states."""
    path = folder / shard
    content = index.to_bytes(dataclasses.replace(index.of_shard(path), **changes))
    index_path(path).write_bytes(content)
    listed = manifest.load_manifest(folder)
    stated = {"index_bytes": len(content), "index_sha256": hashlib.sha256(content).hexdigest()}
    entries = (dataclasses.replace(one, **stated) if one.file == shard else one for one in listed.shards)
    manifest.write_manifest(folder, dataclasses.replace(listed, shards=tuple(entries)))


def assert_same_sample(found: Sample, expected: Sample) -> None:
    """Equal in everything but the key, arrays bit by bit."""
    for name in ("kind", "source", "text", "captions", "related_texts", "related_images"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.regions is None) == (expected.regions is None)
    if found.regions is not None and expected.regions is not None:
        for name in ("boxes", "features", "class_ids", "class_probabilities"):
            actual, wanted = getattr(found.regions, name), getattr(expected.regions, name)
            assert actual.dtype == wanted.dtype
            np.testing.assert_array_equal(actual, wanted)
