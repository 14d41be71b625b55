"""A corpus gives back what was written, its facts agree with its samples, and it opens only what fits together."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.shard_folders import (
    FEATURE_SIZE,
    WordTokenizer,
    assert_same_sample,
    change_index,
    fake_jpeg,
    finish,
    make_folder,
    make_image,
    make_pair,
    make_text,
    write_samples,
)
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.prepare.journal import import_journal
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.schema import Kind, Level, TextRole
from unimo_ds.data.storage import cache, index, manifest, retrying
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.members import texts_of
from unimo_ds.data.storage.open_folder import OpenFolder
from unimo_ds.data.storage.shards import (
    StoredSample,
    index_path,
    read_shard,
    rewrite_shard,
    shard_files,
    write_shards,
)
from unimo_ds.utils.errors import UserError

EXPECTED = [make_image(n) for n in range(4)] + [make_pair(n) for n in range(5)] + [make_text(n) for n in range(3)]
"""The samples of `make_folder` in the order of the manifest: shards by name."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("corpus"))


def test_every_sample_comes_back_as_it_was_written(folder: Path) -> None:
    corpus = Corpus.open(folder)
    assert len(corpus) == len(EXPECTED)
    for number, expected in enumerate(EXPECTED):
        found = corpus.read(number)
        assert_same_sample(found, expected)
        assert found.key == corpus.key(number)
    assert corpus.bytes_read > 0
    assert [corpus.read_jpeg(4 + n) for n in range(5)] == [fake_jpeg(n) for n in range(5)]
    assert corpus.read_jpeg(0) is None
    assert corpus.details(5) == {"file": "1.jpg"}
    assert len({corpus.key(number) for number in range(len(corpus))}) == len(corpus)
    with pytest.raises(IndexError):
        corpus.read(len(corpus))


def test_facts_agree_with_the_samples(folder: Path) -> None:
    corpus = Corpus.open(folder)
    roles, levels, captions, tokens = [], [], [], []
    for number in range(len(corpus)):
        sample = corpus.read(number)
        assert corpus.kinds[number] == sample.kind
        assert corpus.source_names[corpus.source_ids[number]] == sample.source
        assert corpus.num_regions[number] == (0 if sample.regions is None else len(sample.regions.features))
        assert corpus.manifest.shards[corpus.shard_of[number]].file == sample.key.split(":")[0]
        texts = texts_of(sample)
        assert corpus.text_start[number + 1] - corpus.text_start[number] == len(texts)
        roles += [text.role for text in texts]
        levels += [text.level for text in texts]
        captions += [text.caption for text in texts]
        tokens += [len(text.text.split()) for text in texts]
        first, last = corpus.related_image_start[number : number + 2]
        assert [corpus.key(int(one)).split(":")[0] for one in corpus.related_image_index[first:last]] == [
            shard for shard, _ in sample.related_images
        ]
    for found, expected in (
        (corpus.text_role, roles),
        (corpus.text_level, levels),
        (corpus.text_caption, captions),
        (corpus.text_tokens, tokens),
    ):
        np.testing.assert_array_equal(found, expected)
    # The images are the first shard, so a reference to image n of it is sample n.
    np.testing.assert_array_equal(corpus.related_image_index, [0, 1, 2, 3, 0])
    assert (corpus.feature_size, corpus.classes_per_region, corpus.num_region_classes) == (FEATURE_SIZE, 2, 16)
    assert corpus.manifest.totals == {"image": 4, "pair": 5, "text": 3}
    assert corpus.has_stored_regions
    assert corpus.tokenizer_path == folder / "tokenizer.json"
    for entry in corpus.manifest.shards:
        regions = [one.sample.regions for one in read_shard(folder / entry.file)]
        largest = max((int(one.class_ids.max()) for one in regions if one is not None), default=-1)
        assert index.of_shard(folder / entry.file).largest_class == largest


def test_canonical_order_of_texts() -> None:
    texts = texts_of(make_pair(7))
    assert [text.role for text in texts] == [
        TextRole.TEXT,
        TextRole.POSITIVE,
        *[TextRole.NEGATIVE] * 3,
        TextRole.TEXT,
        *[TextRole.RELATED] * 2,
    ]
    assert [text.level for text in texts[2:5]] == [Level.SENTENCE, Level.PHRASE, Level.WORD]
    assert [text.caption for text in texts] == [0, 0, 0, 0, 0, 1, -1, -1]


def test_equal_samples_give_equal_folders(folder: Path, tmp_path: Path) -> None:
    twin = make_folder(tmp_path / "twin")
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in twin.iterdir())
    assert all((folder / name).read_bytes() == (twin / name).read_bytes() for name in files)


def test_several_imports_share_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    before = Corpus.open(folder)
    write_shards(folder, "more-pairs", [StoredSample(make_pair(9))])
    made = finish_folder(folder, tokenizer=WordTokenizer(), command="a second import")
    assert [shard.file for shard in made.shards] == sorted(shard.file for shard in made.shards)
    assert made.commands == ("make test data", "a second import")
    assert (made.num_region_classes, made.extractor) == (16, before.manifest.extractor)
    after = Corpus.open(folder)
    assert len(after) == len(before) + 1
    assert after.fingerprint != before.fingerprint
    assert after.manifest.totals["pair"] == 6
    assert verify(folder) == []


def test_a_manifest_lists_other_files_by_name_and_hides_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    names = ["a.tsv", "b.txt", "report-x.json", "z.json"]
    for name in reversed(names):
        (folder / name).write_text(name)
    monkeypatch.setattr(sys, "argv", ["unimo", "prepare", "pack", "s3://key:secret@bucket"])
    made = finish_folder(folder, tokenizer=WordTokenizer())
    assert [entry.file for entry in made.files] == sorted([*names, "tokenizer.json"])
    assert made.commands[-1].startswith("unimo prepare pack")
    assert "secret" not in made.commands[-1]


def test_finishing_again_changes_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    finish(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == times


def test_another_tokenizer_counts_again(tmp_path: Path) -> None:
    class Letters(WordTokenizer):
        def encode_batch(self, texts: object, /) -> list[np.ndarray]:
            return [np.arange(len(text), dtype=np.int32) for text in texts]  # type: ignore[attr-defined]

    folder = make_folder(tmp_path)
    words = Corpus.open(folder).text_tokens
    finish(folder, tokenizer=Letters("letters"))
    assert (Corpus.open(folder).text_tokens > words).any()


def test_rewriting_a_shard_keeps_count_order_and_keys(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    keys = [Corpus.open(folder).key(n) for n in range(12)]
    shard = folder / "texts-000000.tar"

    def louder(number: int, stored):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        return replace(stored, sample=replace(stored.sample, text=f"{stored.sample.text} {number}!"))

    rewrite_shard(shard, louder)
    assert not index_path(shard).exists()
    finish(folder)
    corpus = Corpus.open(folder)
    assert [corpus.key(n) for n in range(12)] == keys
    assert [corpus.read(9 + n).text for n in range(3)] == [f"{make_text(n).text} {n}!" for n in range(3)]
    assert verify(folder) == []


def test_reading_a_shard_from_its_tar_alone(folder: Path) -> None:
    stored = list(read_shard(folder / "pairs-000001.tar"))
    for number, one in enumerate(stored, start=3):
        assert_same_sample(one.sample, make_pair(number))
        assert (one.jpeg, one.details) == (fake_jpeg(number), {"file": f"{number}.jpg"})
    assert len(stored) == 2


def _read_all(corpus: Corpus, queue) -> None:  # type: ignore[no-untyped-def]
    queue.put([corpus.read(number).key for number in range(len(corpus))])


@pytest.mark.parametrize(("method", "num_workers"), [("fork", 3), ("spawn", 1)])
def test_workers_read_a_corpus_that_is_already_open(folder: Path, method: str, num_workers: int) -> None:
    corpus = Corpus.open(folder)
    corpus.read(0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=_read_all, args=(corpus, queue)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert results == [[corpus.key(number) for number in range(len(corpus))]] * num_workers
    assert_same_sample(corpus.read(5), EXPECTED[5])


def test_errors_survive_the_way_to_the_parent() -> None:
    error = pickle.loads(pickle.dumps(CorruptSample("a.tar:b", "gone")))  # noqa: S301
    assert (error.key, error.reason) == ("a.tar:b", "gone")


@pytest.mark.parametrize(
    ("shard", "first", "name", "value"),
    [("texts-000000.tar", 9, "kind", Kind.PAIR), ("pairs-000000.tar", 4, "num_regions", 2)],
)
def test_a_sample_that_differs_from_its_index_is_refused(
    tmp_path: Path, shard: str, first: int, name: str, value: int
) -> None:
    """Order and packing were computed from what the index says."""
    folder = make_folder(tmp_path)
    samples = index.of_shard(folder / shard).samples.copy()
    samples[name][0] = value  # of a text, or of a pair with one region
    change_index(folder, shard, samples=samples)
    corpus = Corpus.open(folder)
    with pytest.raises(CorruptSample, match="its kind or number of regions differ from the index"):
        corpus.read(first)
    assert_same_sample(corpus.read(first + 1), EXPECTED[first + 1])


def test_transient_errors_are_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_FIRST_PAUSE", 0.001)
    corpus = Corpus.open(folder)
    real, failures = os.pread, iter([errno.EIO, errno.ESTALE])

    def flaky(descriptor: int, size: int, offset: int) -> bytes:
        for code in failures:
            raise OSError(code, os.strerror(code))
        # The kernel may give less than was asked for.
        return real(descriptor, min(size, 100), offset)

    monkeypatch.setattr(os, "pread", flaky)
    assert_same_sample(corpus.read(6), EXPECTED[6])


def test_a_lasting_error_names_the_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(folder)

    real, attempts, pauses = os.pread, [], []

    def broken(descriptor: int, size: int, offset: int) -> bytes:
        attempts.append(offset)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(retrying.time, "sleep", pauses.append)
    for _ in range(2):
        with pytest.raises(CorruptSample, match=r"pairs-000000\.tar:pairs-000000-000002.*Input/output"):
            corpus.read(6)
    assert len(attempts) == 5, "where nothing works any more, one attempt has to do"
    monkeypatch.setattr(os, "pread", real)
    assert_same_sample(corpus.read(6), EXPECTED[6])
    # Found again, it is waited for again; lost, it is not, although others are found.
    for expected in (9, 10):
        monkeypatch.setattr(os, "pread", broken)
        with pytest.raises(CorruptSample):
            corpus.read(6)
        assert len(attempts) == expected
        monkeypatch.setattr(os, "pread", real)
        assert_same_sample(corpus.read(0), EXPECTED[0])
    assert pauses == [0.25, 1, 4] * 2


def test_another_file_in_place_of_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "tokenizer.json").write_text('{"words": null}')
    with pytest.raises(UserError, match=r"tokenizer\.json is not what the manifest .* describes.*prepare pack"):
        _ = Corpus.open(folder).tokenizer_path
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json"):
        _ = Corpus.open(folder).tokenizer_path


def test_open_files_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.LocalStorage, "most_open", 2)
    corpus = Corpus.open(folder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for number in range(len(corpus)):
            corpus.read(number)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_threads_share_few_open_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning reads ahead in a thread."""
    monkeypatch.setattr(cache.LocalStorage, "most_open", 1)
    opened = OpenFolder(str(folder))
    entries = opened.manifest.shards

    def read(first: int) -> None:
        for turn in range(first, 10_000):
            entry = entries[turn * 7 // 3 % len(entries)]
            assert Path(str(opened.shard(entry).name)).name == entry.file

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
    finally:
        sys.setswitchinterval(interval)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data folder"):
        Corpus.open(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="not a data folder"):
        Corpus.open(empty)
    with pytest.raises(UserError, match="holds no shards"):
        finish(empty)
    unfinished = tmp_path / "unfinished"
    write_samples(unfinished)
    with pytest.raises(UserError, match=r"shards but no manifest\.json; finish it with `unimo prepare pack"):
        Corpus.open(unfinished)
    import_journal(unfinished, "toys").begin("work")  # pack would leave its shards out
    with pytest.raises(UserError, match=r"import that was not finished \(toys\); the same .* again goes on"):
        Corpus.open(unfinished)


def test_the_folder_of_data_folders_is_not_one(tmp_path: Path) -> None:
    write_samples(tmp_path / "train")
    finish(tmp_path / "train")
    with pytest.raises(UserError, match=r"name one of the data folders in it: .*train"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("location", ["pipe:cat x", "ftp://host/data", "file:///tmp::pipe:cat x"])
def test_addresses_that_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a local folder or a URL of"):
        Corpus.open(location.replace("file:///tmp", str(make_folder(tmp_path))))


def test_file_systems_are_never_chained() -> None:
    """fsspec's own meaning of `::`; here it stands between folders."""
    with pytest.raises(UserError, match="no data folder at simplecache"):
        Corpus.open("simplecache::s3://bucket")
    with pytest.raises(UserError, match="a local folder or a URL of"):
        cache.open_storage("memory://a::b", cache_dir=None, cache_bytes=0)


def _tamper(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Change the manifest's record and write it with a fresh checksum."""
    path = folder / manifest.MANIFEST_FILE
    record = json.loads(path.read_text())
    change(record)
    del record["checksum"]
    text = json.dumps(record, sort_keys=True).encode()
    record["checksum"] = manifest._digest(text)
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema_version=2), "schema version 2"),
        (lambda record: record.update(colour="red"), "unknown key 'colour'"),
        (lambda record: record.update(shards=[]), "lists no shards"),
        (lambda record: record["shards"][0].update(samplse=4), "unknown key 'samplse'; did you mean 'samples'"),
        (lambda record: record.pop("tokenizer"), "has no 'tokenizer'"),
        (lambda record: record.update(feature_size="8"), 'feature_size has "8" where a whole number belongs'),
        (lambda record: record.update(feature_size=-8), "has a negative number"),
        (lambda record: record.update(totals={"pair": 1}), "totals"),
        (lambda record: record["shards"][0].update(file="../images-000000.tar"), "not a plain file name"),
        (lambda record: record["files"][0].update(file="/etc/passwd"), "not a plain file name"),
        (lambda record: record["shards"][0].update(file="pipe:rm.tar"), "not a plain file name"),
        (lambda record: record["shards"][0].update(sha256="../../../a"), "not a SHA-256"),
        (lambda record: record["files"][0].update(sha256="A" * 64), "not a SHA-256"),
        (lambda record: record["shards"].append(record["shards"][0]), "twice"),
        (lambda record: record["shards"][0].update(samples=5), "disagree"),
        (lambda record: record["shards"][0].update(sha256="0" * 64), "disagree"),
        (lambda record: record["shards"][0].update(bytes=10240), "has 30720 bytes, not 10240"),
        (lambda record: record["shards"][0].update(index_sha256="0" * 64), "not the index that the manifest describes"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = make_folder(tmp_path)
    _tamper(folder, change)
    with pytest.raises(UserError, match=message):
        Corpus.open(folder)
    assert verify(folder) != []


def test_a_fingerprint_covers_all_that_a_run_reads(folder: Path) -> None:
    known = manifest.load_manifest(folder)
    first, *others = known.shards
    changes: list[dict[str, Any]] = [
        {"shards": (dataclasses.replace(first, **{name: "0" * 64}), *others)}
        for name in ("file", "sha256", "index_sha256")
    ]
    changes += [{"shards": (*others, first)}, {"tokenizer": dataclasses.replace(known.tokenizer, fingerprint="other")}]
    changes += [{name: 1} for name in ("feature_size", "classes_per_region", "num_region_classes")]
    found = {dataclasses.replace(known, **change).fingerprint for change in changes}
    assert len(found | {known.fingerprint}) == len(changes) + 1
    assert dataclasses.replace(known, commands=(), files=(), versions={}).fingerprint == known.fingerprint


def test_an_edited_manifest_is_seen_by_its_checksum(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder / manifest.MANIFEST_FILE
    path.write_text(path.read_text().replace('"make test data"', '"made elsewhere"'))
    with pytest.raises(UserError, match="changed after it was written"):
        Corpus.open(folder)


def test_finishing_does_not_bless_what_changed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    shard = folder / "texts-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content + bytes(10240))
    with pytest.raises(UserError, match=r"texts-000000\.tar has 20480 bytes where its index knows 10240"):
        finish(folder)
    shard.unlink()
    with pytest.raises(UserError, match=r"lost shard texts-000000\.tar"):
        finish(folder)
    shard.write_bytes(content)
    finish(folder)
    assert verify(folder) == []


def test_shards_must_agree(tmp_path: Path) -> None:
    write_samples(tmp_path)
    write_shards(tmp_path, "wide", [StoredSample(make_pair(0, feature_size=9))])
    with pytest.raises(
        UserError, match=r"wide-000000\.tar has regions of 9 features .* where images-000000\.tar has 8"
    ):
        finish(tmp_path)
    (tmp_path / "wide-000000.tar").unlink()
    largest = max(index.of_shard(path).largest_class for path in shard_files(tmp_path))
    with pytest.raises(UserError, match=f"holds region class {largest}, but num_region_classes is {largest};"):
        finish_folder(tmp_path, tokenizer=WordTokenizer(), num_region_classes=largest)


def test_references_must_lead_somewhere(tmp_path: Path) -> None:
    write_samples(tmp_path, num_images=0)
    with pytest.raises(UserError, match=r"related images in images-000000\.tar, which is not there.*prepare retrieve"):
        finish(tmp_path)
    write_shards(tmp_path, "images", [StoredSample(make_image(0))])
    with pytest.raises(UserError, match="not there or has no regions"):
        finish(tmp_path)
    write_shards(tmp_path, "images", [StoredSample(make_text(number)) for number in range(4)])
    with pytest.raises(UserError, match="not there or has no regions"):
        finish(tmp_path)


def test_many_shards_keep_their_order(tmp_path: Path) -> None:
    """Their indices are read side by side."""
    write_shards(tmp_path, "texts", (StoredSample(make_text(number)) for number in range(40)), max_samples=1)
    finish(tmp_path)
    assert Corpus.open(tmp_path).text_tokens.tolist() == [1 + number for number in range(40)]


def test_shards_are_verified_side_by_side(tmp_path: Path) -> None:
    write_samples(tmp_path)
    assert len(finish(tmp_path).shards) == 4
    with ThreadPoolExecutor(4) as executor:
        workers = Workers(4, executor)
        assert verify(tmp_path, workers=workers) == []
        for name in ("texts-000000.tar", "images-000000.tar"):
            (tmp_path / name).write_bytes(b"")
        found = verify(tmp_path, workers=workers)
        assert found == verify(tmp_path), "the same, in the same order"
        assert {problem.file for problem in found} == {"images-000000.tar", "texts-000000.tar"}


def test_text_only_folders_have_no_feature_size(tmp_path: Path) -> None:
    write_samples(tmp_path, num_images=0, num_pairs=0)
    (tmp_path / "tokenizer.json").write_text("{}")
    finish_folder(tmp_path, tokenizer=WordTokenizer())
    corpus = Corpus.open(tmp_path)
    assert (corpus.feature_size, corpus.num_region_classes, len(corpus.related_image_index)) == (0, 0, 0)
    assert set(corpus.kinds) == {Kind.TEXT}
    assert corpus.read(2).text == "word word end"
