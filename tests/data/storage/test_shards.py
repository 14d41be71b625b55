"""Shards are plain WebDataset tars, appear whole or not at all, and a stock pipeline reads them with its pickles shut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.shard_folders import fake_jpeg, make_folder, make_image, make_pair, make_text
from tests.engine.disks import files_of_at_most
from unimo_ds.data.storage.shards import (
    StoredSample,
    index_path,
    read_shard,
    rewrite_shard,
    shard_files,
    write_shard,
    write_shards,
)
from unimo_ds.utils.errors import UserError

_STOCK_PIPELINE = """
import json, sys
import webdataset
assert webdataset.utils.enforce_security
samples = []
for sample in webdataset.WebDataset(json.loads(sys.argv[1]), shardshuffle=False).decode():
    arrays = {name: value.tolist() for name, value in sample.items() if name.endswith(".npy")}
    samples.append({"key": sample["__key__"], "json": sample["json"], **arrays})
print(json.dumps(samples))
"""


def test_a_stock_webdataset_pipeline_reads_every_shard(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    # The pretended JPEGs cannot be decoded, so images and texts are read whole and pairs without decoding (next test).
    plain = [path for path in paths if "pairs" not in path]
    environment = {**os.environ, "WDS_SECURE": "1"}
    command = [sys.executable, "-c", _STOCK_PIPELINE, json.dumps(plain)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    samples = json.loads(result.stdout)
    assert [sample["key"] for sample in samples] == [f"images-000000-00000{n}" for n in range(4)] + [
        f"texts-000000-00000{n}" for n in range(3)
    ]
    for number in range(4):
        regions = make_image(number).regions
        assert regions is not None
        np.testing.assert_array_equal(samples[number]["features.npy"], regions.features.astype(np.float64))
        np.testing.assert_array_equal(samples[number]["class_ids.npy"], regions.class_ids)
    assert [sample["json"]["text"] for sample in samples[4:]] == [make_text(n).text for n in range(3)]


def test_a_stock_pipeline_gives_the_stored_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset

    folder = make_folder(tmp_path)
    samples = list(webdataset.WebDataset([str(folder / f"pairs-00000{n}.tar") for n in range(2)], shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == [fake_jpeg(n) for n in range(5)]
    for number, sample in enumerate(samples):
        record = json.loads(sample["json"])
        assert record["captions"][0]["text"] == make_pair(number).captions[0].text
        assert record["captions"][0]["rewrites"]["negative"][2] == {
            "text": f"a small blue dog number {number}",
            "level": "word",
            "from": "rëd>blue",
        }
        assert record["related_images"] == [f"images-000000.tar:{number % 4}"]


def test_the_form_with_one_caption_at_the_top_is_read_too(tmp_path: Path) -> None:
    from unimo_ds.data.schema import Level
    from unimo_ds.data.storage import members

    content = {members.EXTENSIONS.index(name): part for name, part in members.encode_sample(make_pair(0)).items()}
    negative = {"text": "a blue dog", "level": "word", "from": "red", "to": "blue"}
    record = {
        "kind": "pair",
        "source": "x",
        "caption": "a red dog",
        "rewrites": {"positive": [], "negative": [negative]},
    }
    content[members.JSON] = json.dumps({**record, "size": [640, 480]}).encode()
    (caption,) = members.decode_sample("key", content).captions
    assert caption.text == "a red dog"
    assert (caption.negatives[0].level, caption.negatives[0].origin) == (Level.WORD, "red>blue")


def test_members_carry_nothing_of_the_machine(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with tarfile.open(folder / "pairs-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "root", "root")


def test_shards_are_bounded_by_samples(tmp_path: Path) -> None:
    write_shards(tmp_path, "few", (StoredSample(make_text(n)) for n in range(5)), max_samples=2)
    found = [[one.sample.key for one in read_shard(tmp_path / f"few-00000{n}.tar")] for n in range(3)]
    assert [len(keys) for keys in found] == [2, 2, 1]
    assert found[1][0] == "few-000001.tar:few-000001-000000"


def test_no_samples_make_no_shard(tmp_path: Path) -> None:
    write_shards(tmp_path / "new", "none", [])
    assert os.listdir(tmp_path / "new") == []
    folder = make_folder(tmp_path / "old")
    shard = folder / "texts-000000.tar"
    assert write_shard(shard, [], refused=lambda *_: None) == 0
    assert not shard.exists()
    assert not index_path(shard).exists()


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the index of the one before it is gone: it would describe other bytes."""
    folder = make_folder(tmp_path)
    shard = folder / "texts-000000.tar"
    on_disk: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: on_disk.append(os.fstat(handle).st_size))

    def killed(aside: Path, path: Path) -> None:
        assert on_disk == [aside.stat().st_size]
        assert path == shard
        assert not index_path(shard).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(shard, [StoredSample(make_text(n)) for n in range(40)], refused=lambda *_: None)
    assert len(list(read_shard(shard))) == 3


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    """As some systems put beside every file that they copy."""
    folder = make_folder(tmp_path)
    known = shard_files(folder)
    (folder / "._texts-000000.tar").write_bytes(b"")
    assert shard_files(folder) == known


def test_an_interrupted_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    def interrupted() -> Iterator[StoredSample]:
        for number in range(3):
            yield StoredSample(make_text(number))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, "part", interrupted(), max_samples=2)
    assert os.listdir(tmp_path) == ["part-000000.tar"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        write_shards(tmp_path / "file", "x", [])


def test_a_full_disk_is_a_sentence_and_leaves_no_shard(tmp_path: Path) -> None:
    samples = [StoredSample(make_image(number), bytes(1000)) for number in range(100)]
    with files_of_at_most(50_000), pytest.raises(UserError, match=r"cannot write .*x-000000\.tar: File too large"):
        write_shards(tmp_path, "x", samples)
    assert os.listdir(tmp_path) == []


def test_a_failed_rewrite_leaves_the_shard_as_it_was(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(number, stored):  # type: ignore[no-untyped-def]
        if number == 2:
            raise ArithmeticError
        return stored

    with pytest.raises(ArithmeticError):
        rewrite_shard(folder / "pairs-000000.tar", fail)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
