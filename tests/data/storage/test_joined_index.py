"""A large corpus's joined, mapped indices are those of a small one; whatever happens to their files, nothing wrong is read."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.shard_folders import change_index, finish, make_folder, write_samples
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.storage import index, joined_index, shards
from unimo_ds.utils.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every corpus counts as large."""
    monkeypatch.setattr(joined_index, "LARGEST_IN_MEMORY", 0)


def open_corpus(folder: Path) -> Corpus:
    return Corpus.open(folder, cache_dir=str(folder.parent / "cache"))


def columns(corpus: Corpus) -> joined_index.Columns:
    return corpus._index.columns


def is_mapped(corpus: Corpus) -> bool:
    base = corpus.kinds
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    return isinstance(base, np.memmap)


def files(folder: Path) -> dict[str, int]:
    """Of the joined indices, with the times at which they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder.parent / "cache" / "indices").glob("*/*")}


def make_anew(folder: Path, *, num_pairs: int) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    write_samples(folder, num_pairs=num_pairs)
    finish(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"related_shards": ("gone.tar",)},
            r"pairs-000000\.tar refers to images in gone\.tar, which the manifest does not",
        ),
        (
            {"source_names": ("gone",)},
            r"pairs-000000\.tar holds samples of the source gone, of which the manifest does not",
        ),
        ({"related_images": [4, 1, 2]}, r"pairs-000000\.tar refers to related images beyond the end of a shard"),
    ],
)
def test_an_index_that_leads_out_of_the_manifest_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    shard = "pairs-000000.tar"
    if "related_images" in change:
        related = index.of_shard(folder / shard).related_images.copy()
        related["index"] = change["related_images"]  # of images 0 to 3
        change = {"related_images": related}
    change_index(folder, shard, **change)
    with pytest.raises(UserError, match=message):
        open_corpus(folder)


def test_a_small_corpus_is_held_in_memory(folder: Path) -> None:
    assert not is_mapped(open_corpus(folder))
    assert not (folder.parent / "cache").exists()


def test_mapped_indices_are_those_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = open_corpus(folder)
    monkeypatch.setattr(joined_index, "LARGEST_IN_MEMORY", 0)
    written: dict[str, int] = {}
    for opened in range(2):
        large = open_corpus(folder)
        assert is_mapped(large)
        for name, column in columns(small).items():
            assert columns(large)[name].dtype == column.dtype
            np.testing.assert_array_equal(columns(large)[name], column, err_msg=name)
        assert large.has_stored_regions == small.has_stored_regions
        assert large.source_names == small.source_names
        for number in range(len(small)):
            assert large.key(number) == small.key(number)
            assert large.read(number).captions == small.read(number).captions
            assert large.read_jpeg(number) == small.read_jpeg(number)
        if opened:
            assert files(folder) == written, "the second time they are found"
        (joined,) = (path for path in (folder.parent / "cache" / "indices").iterdir() if path.is_dir())
        assert joined.stat().st_mode & 0o777 == 0o755, "for other users too"
        written = files(folder)


@pytest.mark.usefixtures("_large")
def test_later_starts_read_no_index(folder: Path) -> None:
    first = open_corpus(folder)
    for path in folder.glob("*.npz"):
        path.unlink()
    rebuild, arguments = open_corpus(folder).__reduce__()  # as a spawned worker gets it
    second = rebuild(*arguments)
    assert [second.key(number) for number in range(len(second))] == [first.key(number) for number in range(len(first))]


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("damage", ["cut", "gone", "nonsense", "flipped", "counted wrongly"])
def test_damaged_files_are_made_anew(folder: Path, damage: str) -> None:
    wanted = columns(open_corpus(folder))
    wanted = {name: column.copy() for name, column in wanted.items()}
    (joined,) = (path for path in (folder.parent / "cache" / "indices").iterdir() if path.is_dir())
    if damage == "cut":
        os.truncate(joined / "text_tokens", 3)
    elif damage == "flipped":
        content = bytearray((joined / "places").read_bytes())
        content[17] ^= 4
        (joined / "places").write_bytes(content)
    elif damage == "counted wrongly":
        about = json.loads((joined / "about.json").read_text())
        about["lengths"]["text_tokens"] -= 1
        (joined / "about.json").write_text(json.dumps(about))
    elif damage == "gone":
        (joined / "places").unlink()
    else:
        (joined / "about.json").write_text('{"lengths": {"kinds": 1}}')
    again = open_corpus(folder)
    assert is_mapped(again)
    for name, column in columns(again).items():
        np.testing.assert_array_equal(column, wanted[name])


@pytest.mark.usefixtures("_large")
def test_other_data_have_files_of_their_own(folder: Path) -> None:
    before = open_corpus(folder)
    assert len(before) == 12
    make_anew(folder, num_pairs=9)
    assert len(open_corpus(folder)) == 16
    assert len(before) == 12, "who has the old ones open goes on reading them"
    assert before.kinds.max() <= 2


@pytest.mark.usefixtures("_large")
def test_those_of_the_folder_as_it_was_go_when_nobody_has_them_open(folder: Path) -> None:
    indices, others = folder.parent / "cache" / "indices", folder.parent / "others"

    def joined() -> set[str]:
        return {path.name for path in indices.iterdir() if path.is_dir()}

    make_anew(others, num_pairs=3)
    open_corpus(others)
    (indices / "fedcba9876543210.alive.partial").mkdir()
    at_work = (indices / "fedcba9876543210.lock").open("ab")
    fcntl.flock(at_work, fcntl.LOCK_EX)
    kept = joined()
    first = open_corpus(folder)
    (name,) = joined() - kept
    before = first.kinds.copy()
    make_anew(folder, num_pairs=9)
    second = open_corpus(folder)
    assert name in joined(), "it is still open"
    np.testing.assert_array_equal(first.kinds, before)

    del first, second
    gc.collect()
    (indices / "0123456789abcdef.killed.partial").mkdir()
    make_anew(folder, num_pairs=7)
    third = open_corpus(folder)
    assert len(third) == len(third.kinds) == 14
    assert len(joined() - kept) == 1, "both are gone, and what a killed process of other data left"
    assert kept < joined(), "those of another folder stay, and what another process is writing"
    at_work.close()


@pytest.mark.usefixtures("_large")
def test_without_a_place_for_them_every_process_holds_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "cache").write_text("a file, where the cache folder would be")
    corpus = open_corpus(folder)
    assert not is_mapped(corpus)
    assert len(corpus) == 12
    assert "warning: cannot keep the joined indices" in capsys.readouterr().err


@pytest.mark.usefixtures("_large")
def test_files_that_everybody_may_change_are_not_used(folder: Path) -> None:
    open_corpus(folder)
    (folder.parent / "cache" / "indices").chmod(0o777)
    with pytest.raises(UserError, match="everybody may write to the cache folder"):
        open_corpus(folder)


@pytest.mark.usefixtures("_large")
def test_damage_of_the_data_is_told_as_ever(folder: Path) -> None:
    shards.index_path(folder / "pairs-000000.tar").write_bytes(b"no index")
    with pytest.raises(UserError, match="is not the index that the manifest describes"):
        open_corpus(folder)
    assert not any((folder.parent / "cache" / "indices").glob("*/*")), "nothing half made stays"


@pytest.mark.usefixtures("_large")
def test_what_killed_processes_left_is_removed_and_others_may_be_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = columns(open_corpus(folder))["text_tokens"].copy()
    indices = folder.parent / "cache" / "indices"
    (joined,) = (path for path in indices.iterdir() if path.is_dir())
    shutil.rmtree(joined)
    (indices / f"{joined.name}.killed.partial").mkdir()
    np.testing.assert_array_equal(columns(open_corpus(folder))["text_tokens"], wanted)
    assert [path.name for path in indices.iterdir() if path.is_dir()] == [joined.name]

    # Without locks two processes write it; the slower one takes what the faster has left there.
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(joined_index.fcntl, "flock", no_lock)
    (joined / "places").unlink()
    write = joined_index._write

    def after_another(pieces: joined_index._Pieces, target: Path, places: str) -> None:
        write(pieces, target, places)
        times = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
        write(pieces, target, places)
        assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == times

    monkeypatch.setattr(joined_index, "_write", after_another)
    np.testing.assert_array_equal(columns(open_corpus(folder))["text_tokens"], wanted)
    assert [path.name for path in indices.iterdir() if path.is_dir()] == [joined.name]


def _open_in_a_process(folder: str, found: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    joined_index.LARGEST_IN_MEMORY = 0
    found.put(int(open_corpus(Path(folder)).text_tokens.sum()))


def test_processes_that_open_it_at_once_agree(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    started = [context.Process(target=_open_in_a_process, args=(str(folder), found)) for _ in range(3)]
    for process in started:
        process.start()
    results = {found.get(timeout=120) for _ in started}
    for process in started:
        process.join()
    assert results == {int(open_corpus(folder).text_tokens.sum())}
    assert len([path for path in (folder.parent / "cache" / "indices").iterdir() if path.is_dir()]) == 1
