"""The collections that retrieval searches: a folder's single-modal samples as blocks on disk, one per shard, made by tasks.

texts-N.json       distinct sentences of fitting length    texts-N.npz       their TF-IDF vectors
images-N.npz       class vectors of the images             features-N.npy    their mean features, float16
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, load_npz, save_npz

from unimo_ds.data.prepare.journal import write_json
from unimo_ds.data.prepare.retrieval import word_table
from unimo_ds.data.prepare.retrieval.similarity import (
    Vocabulary,
    content_words,
    tf_idf,
    unit_rows,
    weigh_words,
    words_of,
)
from unimo_ds.data.prepare.retrieval.word_table import WordTable
from unimo_ds.data.schema import Kind, Regions
from unimo_ds.data.storage import shards
from unimo_ds.utils.whole_file import write_made

SHORTEST_SENTENCE, LONGEST_SENTENCE = 4, 60
"""In words: fragments are similar to everything, and each long text costs a full sequence."""
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+")
_WEIGHTS = "word-weights.npy"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """One shard's part of a collection."""

    number: int
    shard: str
    first: int
    """Index of its first row in the whole collection."""
    size: int


def num_rows(blocks: Iterable[Block]) -> int:
    return sum(block.size for block in blocks)


def collect_sentences(shard: Path, folder: Path, number: int) -> None:
    """Write the shard's distinct sentences and their hashes."""
    sentences: dict[str, None] = {}
    for stored in shards.read_shard(shard, pixels=False):
        if stored.sample.kind is Kind.TEXT:
            for sentence in _SENTENCE_BREAK.split(stored.sample.text or ""):
                if SHORTEST_SENTENCE <= len(words_of(sentence)) <= LONGEST_SENTENCE:
                    sentences[sentence.strip()] = None
    hashes = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest(), "little") for one in sentences]
    _write_array(folder / f"hashes-{number:06d}.npy", np.array(hashes, np.uint64))
    write_json(folder / f"texts-{number:06d}.json", list(sentences))


def _write_array(path: Path, array: NDArray[Any]) -> None:
    write_made(path, lambda stream: np.save(stream, array))


def _write_rows(path: Path, rows: csr_matrix) -> None:
    write_made(path, lambda stream: save_npz(stream, rows, compressed=False))


def keep_first(folder: Path, numbers: list[int]) -> int:
    """Mark the first occurrence of each sentence over all blocks. Returns the number of distinct sentences.

    Memory: 26 bytes per sentence.
    """
    hashes = [np.load(folder / f"hashes-{number:06d}.npy") for number in numbers]
    ends = np.cumsum([len(one) for one in hashes])
    whole = np.concatenate([*hashes, np.zeros(0, np.uint64)])
    del hashes
    order = np.argsort(whole, kind="stable")
    whole = whole[order]
    first = np.ones(len(whole), bool)
    first[order[1:]] = whole[1:] != whole[:-1]
    for number, kept in zip(numbers, np.split(first, ends[:-1]), strict=True):
        _write_array(folder / f"kept-{number:06d}.npy", kept)
    return int(first.sum())


def count_words(folder: Path, number: int) -> Counter[str]:
    """Write the block's kept sentences. Returns word -> number of these that contain it."""
    kept = np.load(folder / f"kept-{number:06d}.npy")
    found = json.loads((folder / f"texts-{number:06d}.json").read_bytes())
    sentences = [one for one, stays in zip(found, kept, strict=True) if stays]
    write_json(folder / f"sentences-{number:06d}.json", sentences)
    return Counter(word for sentence in sentences for word in set(content_words(sentence)))


def write_vocabulary(folder: Path, frequencies: Counter[str], num_sentences: int) -> None:
    words, weights = weigh_words(frequencies, num_sentences)
    word_table.write(folder, words)
    _write_array(folder / _WEIGHTS, weights)


@functools.lru_cache(maxsize=1)
def read_vocabulary(folder: Path, fingerprint: str) -> Vocabulary:
    return Vocabulary(WordTable(folder).number_of, np.load(folder / _WEIGHTS, mmap_mode="r"))


def vectorise(folder: Path, number: int, fingerprint: str) -> int:
    """Write the block's TF-IDF vectors. Returns its number of sentences."""
    rows = tf_idf(sentences(folder, number), read_vocabulary(folder, fingerprint))
    _write_rows(folder / f"texts-{number:06d}.npz", rows)
    return int(rows.shape[0])


def sentences(folder: Path, number: int) -> list[str]:
    """The sentences of a block."""
    found: list[str] = json.loads((folder / f"sentences-{number:06d}.json").read_bytes())
    return found


def vectors(folder: Path, kind: str, number: int) -> csr_matrix:
    """The vectors of a block of `texts` or `images`."""
    return load_npz(folder / f"{kind}-{number:06d}.npz")


def summarise_images(shard: Path, folder: Path, number: int, num_classes: int) -> int:
    """Write class vectors, mean features and positions of the shard's image samples. Returns their number."""
    classes: list[Floats] = []
    features: list[Floats] = []
    positions: list[int] = []
    for position, stored in enumerate(shards.read_shard(shard)):
        if stored.sample.kind is Kind.IMAGE and stored.sample.regions is not None:
            one, other = summarise(stored.sample.regions, num_classes=num_classes)
            classes.append(one)
            features.append(other)
            positions.append(position)
    _write_rows(folder / f"images-{number:06d}.npz", class_rows(classes, num_classes))
    means = np.stack(features).astype(np.float16) if features else np.zeros((0, 1))
    _write_array(folder / f"features-{number:06d}.npy", means)
    _write_array(folder / f"positions-{number:06d}.npy", np.array(positions, np.int64))
    return len(positions)


def class_rows(classes: list[Floats], num_classes: int) -> csr_matrix:
    """Class vectors as sparse rows of unit length."""
    dense = np.stack(classes) if classes else np.zeros((0, num_classes), np.float32)
    return unit_rows(csr_matrix(dense))


def summarise(regions: Regions, *, num_classes: int) -> tuple[Floats, Floats]:
    """Class vector [C] (summed probabilities) and mean feature [F] of an image, both of unit length."""
    classes = np.zeros(num_classes, np.float32)
    np.add.at(classes, regions.class_ids.ravel(), regions.class_probabilities.astype(np.float32).ravel())
    return _unit(classes), _unit(regions.features.astype(np.float32).mean(0))


@functools.lru_cache(maxsize=256)
def features(folder: Path, number: int, fingerprint: str) -> NDArray[Any]:
    """[n, F] mean features of a block, memory-mapped."""
    found: NDArray[Any] = np.load(folder / f"features-{number:06d}.npy", mmap_mode="r")
    return found


def positions(folder: Path, number: int) -> NDArray[np.int64]:
    """[n] index within the shard of each image of a block."""
    found: NDArray[np.int64] = np.load(folder / f"positions-{number:06d}.npy")
    return found


def _unit(vector: Floats) -> Floats:
    result: Floats = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return result
