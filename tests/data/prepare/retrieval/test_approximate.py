"""The index proposes, the exact scores decide: looked into everywhere it is the exact search, and otherwise a subset of it."""

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from tests.data.prepare.raw import captions, small_extractor, write_photographs
from tests.data.prepare.test_scale import run_and_kill, shard_bytes
from tests.engine.disks import files_of_at_most
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.retrieval import approximate
from unimo_ds.data.prepare.retrieval.collections_on_disk import Block, num_rows
from unimo_ds.data.prepare.retrieval.similarity import Nearest, Vocabulary, tf_idf, unit_rows, weigh_words
from unimo_ds.data.prepare.verify import verify
from unimo_ds.utils.errors import UserError

WORDS = 400


def blocks_of(*sizes: int) -> list[Block]:
    firsts = itertools.accumulate(sizes, initial=0)
    return [Block(i, f"{i}.tar", first, size) for i, (first, size) in enumerate(zip(firsts, sizes, strict=False))]


BLOCKS = blocks_of(300, 0, 500, 200)


@pytest.fixture(scope="module")
def collection() -> tuple[csr_matrix, list[csr_matrix]]:
    """Queries, and blocks of rows of which every query has many near and far ones."""
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, WORDS + 1)
    texts = [
        " ".join(f"w{i}" for i in random.choice(WORDS, 9, p=shares / shares.sum()))
        for _ in range(40 + num_rows(BLOCKS))
    ]
    frequencies = {f"w{i}": sum(f"w{i}" in text.split() for text in texts) for i in range(WORDS)}
    words, weights = weigh_words({word: n for word, n in frequencies.items() if n}, len(texts))
    rows = tf_idf(texts, Vocabulary({word: n for n, word in enumerate(words)}.get, weights))
    queries, rest = rows[:40], rows[40:]
    return queries, [rest[block.first : block.first + block.size] for block in BLOCKS]


def exact(queries: csr_matrix, blocks: list[csr_matrix], number: int) -> Nearest:
    nearest = Nearest(queries, number=number)
    for rows, block in zip(blocks, BLOCKS, strict=True):
        nearest.search(rows, first=block.first)
    return nearest


def proposed(
    queries: csr_matrix, blocks: list[csr_matrix], number: int, folder: Path, probed: int
) -> tuple[Nearest, int]:
    nearest = Nearest(queries, number=number)
    groups = approximate.groups_of(BLOCKS)
    for number_of_group, group in enumerate(groups):
        path = folder / f"{number_of_group}.faiss"
        if not path.exists():
            approximate.build(group, blocks.__getitem__, path)
        approximate.search(nearest, group, blocks.__getitem__, path, probed=probed)
    return nearest, len(groups)


@pytest.mark.parametrize("rows_per_index", [10**6, 400])
def test_everywhere_it_is_the_exact_search(
    collection, rows_per_index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, blocks = collection
    monkeypatch.setattr(approximate, "INDEX_ROWS", rows_per_index)
    monkeypatch.setattr(approximate, "PROPOSED", 10**6)
    found, number_of_indices = proposed(queries, blocks, 20, tmp_path, probed=10**6)
    assert number_of_indices == {10**6: 1, 400: 2}[rows_per_index]
    expected = exact(queries, blocks, 20)
    for one, other, scores, others in zip(found.rows, expected.rows, found.scores, expected.scores, strict=True):
        np.testing.assert_allclose(scores, others, atol=2e-6)
        # Sums in another order may differ in the last digit that is kept, and so change places.
        assert len(set(one.tolist()) ^ set(other.tolist())) <= 2


def test_recall_grows_with_what_is_looked_into(collection, tmp_path: Path) -> None:
    queries, blocks = collection
    expected = exact(queries, blocks, 20)
    shares = []
    for probed in (1, 5, 1000):
        found, _ = proposed(queries, blocks, 20, tmp_path, probed)
        true = {
            (q, int(row)): score
            for q in range(40)
            for row, score in zip(expected.rows[q], expected.scores[q], strict=True)
        }
        hits = sum((q, int(row)) in true for q in range(40) for row in found.rows[q])
        shares.append(hits / len(true))
        for rows, scores in zip(found.rows, found.scores, strict=True):
            assert len(set(rows.tolist())) == len(rows)
            assert (np.diff(scores) <= 0).all()
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.95


def test_a_full_disk_is_one_sentence(collection, tmp_path: Path) -> None:
    _, blocks = collection
    (group,) = approximate.groups_of(BLOCKS)
    with files_of_at_most(10_000), pytest.raises(UserError, match=r"cannot write \S*/0.faiss: File too large"):
        approximate.build(group, blocks.__getitem__, tmp_path / "0.faiss")
    assert not list(tmp_path.iterdir())


def test_the_projection_keeps_angles() -> None:
    random = np.random.default_rng(1)
    rows = unit_rows(csr_matrix(random.random((60, 2000)) * (random.random((60, 2000)) < 0.02)))
    before, after = (rows @ rows.T).toarray(), approximate.project(rows) @ approximate.project(rows).T
    assert np.abs(before - after).max() < 0.3
    assert np.abs(before - after).mean() < 0.05
    assert not approximate.project(csr_matrix((2, 2000), dtype=np.float32)).any()


def test_groups_hold_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "INDEX_ROWS", 10)
    groups = approximate.groups_of(blocks_of(4, 0, 7, 3, 0, 20, 0))
    assert [[block.number for block in group] for group in groups] == [[0, 2], [3, 5]]
    assert approximate.groups_of(blocks_of(0, 0)) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data") / "train"
    photographs, tsv = write_photographs(raw, 12)
    (raw / "lines.txt").write_text("\n".join(f"{captions(i)[0]} , {i} times" for i in range(40)), encoding="utf-8")
    shared = ["--output", str(output), "--workers", "1"]
    images = ["--images", str(photographs), "--extractor", str(small_extractor(raw))]
    assert (
        main(["import", "--kind", "pairs", *images, "--captions", str(tsv), "--vocabulary-size", "300", *shared]) == 0
    )
    assert main(["import", "--kind", "images", *images, "--source", "alone", *shared]) == 0
    assert main(["import", "--kind", "texts", "--input", str(raw / "lines.txt"), *shared]) == 0
    return output


def test_the_stage_with_an_index(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So small a collection has one list, so that what is stored is what the exact search finds; twice and after a kill."""
    pytest.importorskip("faiss")
    exactly, output = tmp_path / "exact", tmp_path / "approximate"
    for copy in (exactly, output):
        shutil.copytree(folder, copy)
    assert main(["retrieve", str(exactly), "--number", "3", "--workers", "1"]) == 0
    arguments = ["retrieve", str(output), "--number", "3", "--workers", "1", "--approximate", "texts", "images"]
    assert run_and_kill(arguments, output, after=len(list(output.rglob("*"))) + 12)
    assert main(arguments) == 0
    assert verify(output) == []
    assert shard_bytes(output) == shard_bytes(exactly)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "already retrieved" in capsys.readouterr().out


def test_without_faiss_one_sentence_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    before = shard_bytes(folder)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["retrieve", str(folder), "--approximate", "images"]) == 2
    error = capsys.readouterr().err
    assert "pip install faiss-cpu" in error
    assert error.count("\n") == 1
    assert shard_bytes(folder) == before
