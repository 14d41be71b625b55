"""Indices made by others, under checksums that agree: numbers that lie are refused or named, on opening or on reading."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.shard_folders import make_folder
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.storage import index, manifest
from unimo_ds.utils.errors import UserError

_INDEX = "pairs-000000.index.npz"
Records = NDArray[np.void]


def _put(folder: Path, content: bytes) -> Path:
    """The folder with another index, and a manifest that names it."""
    (folder / _INDEX).write_bytes(content)
    known = manifest.load_manifest(folder)
    told = {"index_bytes": len(content), "index_sha256": hashlib.sha256(content).hexdigest()}
    entries = tuple(
        dataclasses.replace(one, **told) if _INDEX.startswith(one.file.removesuffix("tar")) else one
        for one in known.shards
    )
    manifest.write_manifest(folder, dataclasses.replace(known, shards=entries))
    return folder


def _changed(folder: Path, change: Callable[[Records, Records], None]) -> Path:
    """change: of the records of samples and of texts, in place."""
    honest = index.from_bytes((folder / _INDEX).read_bytes(), where=_INDEX)
    samples, texts = honest.samples.copy(), honest.texts.copy()
    change(samples, texts)
    return _put(folder, index.to_bytes(dataclasses.replace(honest, samples=samples, texts=texts)))


@pytest.mark.parametrize(
    ("of_samples", "field", "value"),
    [
        (True, "kind", 3),
        (True, "kind", 1),  # a text has one text
        (True, "start", 2**63 - 1),  # the sum with an offset overflows
        (True, "start", -1),
        (False, "role", 4),
        (False, "role", 1),  # a pair without a caption
        (False, "level", 4),
        (False, "tokens", -1),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, of_samples: bool, field: str, value: int) -> None:
    def change(samples: Records, texts: Records) -> None:
        (samples if of_samples else texts)[field][0] = value

    with pytest.raises(UserError, match=f"{_INDEX} contradicts itself"):
        Corpus.open(_changed(make_folder(tmp_path / "data"), change))


def test_texts_counted_for_another_sample_are_named(tmp_path: Path) -> None:
    def change(samples: Records, texts: Records) -> None:
        samples["num_texts"][:2] += np.array([1, 2**32 - 1], np.uint32)  # one more, one fewer
        texts["role"][:] = 0

    corpus = Corpus.open(_changed(make_folder(tmp_path / "data"), change))
    first = int(corpus.shard_start[1])  # behind the images
    for sample in (first, first + 1):
        with pytest.raises(CorruptSample, match="its number of texts differs from the index"):
            corpus.read(sample)
    corpus.read(first + 2)


def test_a_compressed_index_is_not_unpacked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(folder / _INDEX) as honest,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in honest.namelist():
            archive.writestr(name, honest.read(name) + bytes(2**20))
    with pytest.raises(UserError, match="samples is compressed"):
        Corpus.open(_put(folder, bomb.getvalue()))
