"""Damage of every kind is found by `verify` with the sample named, and never reaches a reader as a sample.

The kinds are those under which a plain WebDataset pipeline was measured to lose samples silently, to give halves of samples,
to merge two into one, or to run code.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.shard_folders import (
    WordTokenizer,
    assert_same_sample,
    change_index,
    finish,
    make_folder,
    make_image,
    make_pair,
    make_regions,
    make_text,
)
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.prepare.verify import Problem, verify
from unimo_ds.data.schema import Kind, Regions, Sample
from unimo_ds.data.storage import index, manifest, members, shards
from unimo_ds.data.storage.index import build_index
from unimo_ds.utils.errors import UserError

EXPECTED = [make_image(n) for n in range(4)] + [make_pair(n) for n in range(5)] + [make_text(n) for n in range(3)]
SHARD = "pairs-000000.tar"
FIRST_PAIR, LAST_PAIR = 4, 6
"""Samples of the corpus that lie in SHARD."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


def member_headers(path: Path) -> dict[str, int]:
    """Name -> offset of its header."""
    with tarfile.open(path) as archive:
        return {member.name: member.offset for member in archive}


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def named(problems: list[Problem]) -> set[str]:
    return {problem.sample for problem in problems if problem.sample is not None}


def assert_nothing_wrong_is_read(corpus: Corpus) -> int:
    """Every sample is either exactly what was written or refused. Returns how many were refused by their name."""
    refused = 0
    corpus.expect(range(len(corpus)))
    for number, expected in enumerate(EXPECTED):
        try:
            found = corpus.read(number)
        except CorruptSample as error:
            refused += error.key == corpus.key(number)
        else:
            assert_same_sample(found, expected)
    return refused


def test_a_whole_folder_is_good(folder: Path) -> None:
    assert verify(folder) == []


@pytest.mark.parametrize("where", ["payload", "header", "member boundary", "end mark"])
def test_a_cut_shard(folder: Path, where: str) -> None:
    path = folder / SHARD
    headers = member_headers(path)
    second = headers["pairs-000000-000001.boxes.npy"]
    end = {"payload": second + 512 + 20, "header": second + 100, "member boundary": second, "end mark": 10}[where]
    if where == "end mark":
        end = max(headers.values()) + 1024 + 100
    before = Corpus.open(folder)
    os.truncate(path, end)
    problems = verify(folder)
    expected = set() if where == "end mark" else {"pairs-000000-000001", "pairs-000000-000002"}
    assert named(problems) == expected
    assert any("is cut" in problem.reason and problem.file == SHARD for problem in problems)
    # A run that has the shard open already meets the cut sample by sample; a new one is refused.
    assert assert_nothing_wrong_is_read(before) == len(expected)
    with pytest.raises(UserError, match=rf"{SHARD} has \d+ bytes, not \d+"):
        Corpus.open(folder)
    with pytest.raises(UserError, match=r"is damaged.*is cut"):
        build_index(path, WordTokenizer())


def test_a_sector_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = member_headers(folder / SHARD)["pairs-000000-000001.features.npy"] + 512 + 5
    real = shards.open_shard

    class BadSector(io.FileIO):
        def readinto(self, buffer: Any, /) -> int | None:
            at = self.tell()
            if at == bad:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(memoryview(buffer)[: bad - at] if at < bad else buffer)

    monkeypatch.setattr(
        shards, "open_shard", lambda path: io.BufferedReader(BadSector(path)) if path.name == SHARD else real(path)
    )
    problems = verify(folder)
    assert named(problems) == {"pairs-000000-000001"}
    assert any(problem.reason == "its .features.npy cannot be read (Input/output error)" for problem in problems)


def test_a_flipped_bit_in_a_header_loses_nothing(folder: Path) -> None:
    flip(folder / SHARD, member_headers(folder / SHARD)["pairs-000000-000001.jpg"] + 3)
    assert any("header is damaged" in problem.reason for problem in verify(folder))
    # The index knows where everything lies, so that no sample is lost or halved.
    assert assert_nothing_wrong_is_read(Corpus.open(folder)) == 0


@pytest.mark.parametrize("extension", members.EXTENSIONS)
def test_a_flipped_bit_in_a_payload(folder: Path, extension: str) -> None:
    flip(folder / SHARD, member_headers(folder / SHARD)[f"pairs-000000-000001.{extension}"] + 512 + 3)
    problems = verify(folder)
    assert named(problems) == {"pairs-000000-000001"}
    assert any(f".{extension} is damaged" in problem.reason for problem in problems)
    corpus = Corpus.open(folder)
    assert assert_nothing_wrong_is_read(corpus) == (extension != "jpg")
    if extension == "jpg":
        with pytest.raises(CorruptSample, match="jpg is damaged"):
            corpus.read_jpeg(FIRST_PAIR + 1)


@pytest.mark.parametrize("content", [bytes, lambda size: np.random.default_rng(0).bytes(size), lambda size: b""])
def test_a_shard_of_other_bytes(folder: Path, content: Callable[[int], bytes]) -> None:
    before = Corpus.open(folder)
    size = (folder / SHARD).stat().st_size
    (folder / SHARD).write_bytes(content(size))
    assert named(verify(folder)) == {f"pairs-000000-00000{n}" for n in range(3)}
    assert assert_nothing_wrong_is_read(before) == 3
    assert before.read(0).kind == Kind.IMAGE
    with pytest.raises(UserError, match="damaged"):
        finish(folder, reindex=True)


def test_a_missing_shard(folder: Path) -> None:
    before = Corpus.open(folder)
    (folder / SHARD).unlink()
    assert Problem(SHARD, "is missing or not a regular file") in verify(folder)
    assert assert_nothing_wrong_is_read(before) == 3
    with pytest.raises(UserError, match="pairs-000000"):
        Corpus.open(folder)


def test_swapped_shards(folder: Path) -> None:
    one, two = folder / "pairs-000000.tar", folder / "pairs-000001.tar"
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    assert {problem.file for problem in verify(folder)} == {one.name, two.name}


def test_shards_behind_links_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / SHARD).rename(tmp_path / "elsewhere.tar")
    (folder / SHARD).symlink_to(tmp_path / "elsewhere.tar")
    assert any(problem.file == SHARD and "link" in problem.reason for problem in verify(folder))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("extra.pkl", "pickle"),
        ("weights.pt", "pickle"),
        ("more-000000.tar", "not in the manifest"),
        ("x.index.npz", "without a shard"),
    ],
)
def test_things_that_have_no_place_in_a_folder(folder: Path, name: str, reason: str) -> None:
    (folder / name).write_bytes(b"")
    (problem,) = verify(folder)
    assert problem.file == name
    assert reason in problem.reason


def test_a_device_in_the_folder(folder: Path) -> None:
    os.mkfifo(folder / "pipe.json")
    assert [problem.reason for problem in verify(folder)] == ["is a device, pipe or socket"]


def test_the_same_samples_in_two_shards(folder: Path) -> None:
    (folder / "pairs-copy.tar").write_bytes((folder / SHARD).read_bytes())
    finish(folder)
    assert named(verify(folder)) == {f"pairs-000000-00000{n}" for n in range(3)}


@pytest.mark.parametrize(
    "key", ["samples", "kinds", "sources", "classes_per_region", "feature_size", "num_region_classes"]
)
def test_wrong_numbers_under_a_right_checksum(folder: Path, key: str) -> None:
    known = manifest.load_manifest(folder)
    if key in ("samples", "kinds", "sources"):
        wrong = {"samples": 5, "kinds": {"image": 5}, "sources": {"albums": 5}}[key]
        shards = (dataclasses.replace(known.shards[0], **{key: wrong}), *known.shards[1:])
        known = dataclasses.replace(known, shards=shards)
    else:
        known = dataclasses.replace(known, **{key: 1})
    manifest.write_manifest(folder, known)
    problems = verify(folder)
    assert problems
    assert all("images-000000" in problem.file or problem.file == "manifest.json" for problem in problems)


def test_an_index_of_another_form_is_named(folder: Path) -> None:
    path = folder / "pairs-000000.index.npz"
    whole = path.read_bytes()
    known = index.from_bytes(whole, where=path.name)
    changes: tuple[dict[str, Any], ...] = ({"shard_bytes": "many"}, {"source_names": (None,)}, {"largest_class": []})
    changes += ({"base_names": known.base_names.replace("0", "\x85", 1)}, {"base_names": f"\ud800{known.base_names}"})
    encrypted = bytearray(whole)
    encrypted[encrypted.index(b"PK\x01\x02") + 8] ^= 1  # one bit of the directory says that a member is
    for content in (*(index.to_bytes(dataclasses.replace(known, **change)) for change in changes), encrypted):
        path.write_bytes(content)
        assert {problem.file for problem in verify(folder)} == {path.name}


def test_an_index_that_does_not_describe_its_shard_is_named(folder: Path) -> None:
    """Whole, and with the checksum that the manifest states."""
    known = index.of_shard(folder / SHARD)

    def with_last(records: np.ndarray, name: str, value: int) -> np.ndarray:
        changed = records.copy()
        changed[name][-1] = value
        return changed

    changes: dict[str, Any] = {
        "samples": with_last(known.samples, "num_regions", 9),
        "texts": with_last(known.texts, "level", 1),
        "related_images": with_last(known.related_images, "index", 0),
        "base_names": known.base_names.replace("000002", "000003"),
        "source_names": ("others",),
        "related_shards": ("pairs-000001.tar",),
        "feature_size": 9,
        "classes_per_region": 1,
        "largest_class": 0,
        "region_tag_sizes": (3,),
    }
    wrong = Problem("pairs-000000.index.npz", "does not describe its shard; run `unimo prepare pack`")
    for name, value in changes.items():
        change_index(folder, SHARD, **{name: value})
        assert verify(folder) == [wrong], name
        change_index(folder, SHARD, **{name: getattr(known, name)})
    assert verify(folder) == []


def test_an_index_of_another_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = index.of_shard(folder / SHARD)
    monkeypatch.setattr(index, "SCHEMA_VERSION", 2)
    content = index.to_bytes(known)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"an index is not of schema version 1; build it again"):
        index.from_bytes(content, where="an index")


def test_an_index_that_contradicts_itself_is_refused(folder: Path) -> None:
    known = index.of_shard(folder / SHARD)

    def with_first(records: np.ndarray, name: str, value: int) -> np.ndarray:
        changed = records.copy()
        changed[name][0] = value
        return changed

    changes: tuple[dict[str, Any], ...] = (
        {"base_names": known.base_names.partition("\n")[2]},
        {"base_names": known.base_names.replace("0", "\x7f", 1)},
        {"texts": known.texts[1:]},
        {"related_images": known.related_images[1:]},
        {"samples": with_first(known.samples, "source", len(known.source_names))},
        {"samples": with_first(known.samples, "start", -1)},
        {"samples": with_first(known.samples, "start", known.shard_bytes)},
        {"samples": with_first(known.samples, "size", MAX_MEMBER_BYTES + 1), "shard_bytes": 2**40},
        {"related_images": with_first(known.related_images, "shard", len(known.related_shards))},
    )
    for change in changes:
        content = index.to_bytes(dataclasses.replace(known, **change))
        with pytest.raises(UserError, match="contradicts itself"):
            index.from_bytes(content, where="an index")


FLIPPED = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("good"))


@FLIPPED
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_and_never_read(good: Path, data: st.DataObject) -> None:
    path = good / data.draw(st.sampled_from(sorted(os.listdir(good))))
    whole = path.read_bytes()
    try:
        flip(path, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
        assert any(path.name == problem.file for problem in verify(good))
        try:
            corpus = Corpus.open(good)
        except UserError:
            return
        assert_nothing_wrong_is_read(corpus)
    finally:
        path.write_bytes(whole)


@FLIPPED
@given(data=st.data())
def test_a_cut_anywhere_is_found_and_never_read(good: Path, data: st.DataObject) -> None:
    path = good / data.draw(st.sampled_from(sorted(os.listdir(good))))
    whole = path.read_bytes()
    corpus = Corpus.open(good)
    try:
        os.truncate(path, data.draw(st.integers(0, len(whole) - 1)))
        assert any(path.name == problem.file for problem in verify(good))
        assert_nothing_wrong_is_read(corpus)
    finally:
        path.write_bytes(whole)


def test_a_sample_that_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    good_regions = make_regions(0)
    huge = Regions(good_regions.boxes, np.full((3, 8), 1e6), good_regions.class_ids, good_regions.class_probabilities)
    bad = [
        (Sample(key="x", kind=Kind.PAIR, source="s", regions=good_regions), "no captions"),
        (Sample(key="x", kind=Kind.IMAGE, source="s"), "boxes.npy"),
        (Sample(key="x", kind=Kind.TEXT, source="s", text=""), "text is missing"),
        (Sample(key="x", kind=Kind.TEXT, source="s", text="a\ud800"), "not valid Unicode"),
        (Sample(key="x", kind=Kind.TEXT, source="", text="a"), "source is missing"),
        (Sample(key="x", kind=Kind.IMAGE, source="s", regions=huge), "not finite"),
    ]
    for sample, message in bad:
        with pytest.raises(UserError, match=f"cannot store x: .*{message}"):
            shards.write_shards(tmp_path, "bad", [shards.StoredSample(sample)])
    assert list(tmp_path.glob("*.tar")) == []
