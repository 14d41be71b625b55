"""Block-wise search gives what brute force over the whole collection gives, ties included."""

import tracemalloc
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from unimo_ds.data.prepare.retrieval import collections_on_disk, similarity, word_table
from unimo_ds.data.prepare.retrieval.similarity import Nearest, content_words, tf_idf, unit_rows, weigh_words
from unimo_ds.data.prepare.retrieval.word_table import WordTable


def brute_force(queries: np.ndarray, documents: np.ndarray, number: int) -> list[list[int]]:
    scores = np.round(queries @ documents.T, 6)
    return [[int(i) for i in np.lexsort((np.arange(len(row)), -row)) if row[i] > 0][:number] for row in scores]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_blocks_do_not_matter(seed: int, number: int, sizes: list[int]) -> None:
    random = np.random.default_rng(seed)
    # Few distinct values make ties common.
    rows = random.integers(0, 2, (sum(sizes) + 5, 6)).astype(np.float32)
    rows = unit_rows(csr_matrix(rows)).toarray()
    queries, documents = rows[:5], rows[5:]
    nearest = Nearest(csr_matrix(queries), number=number)
    first = 0
    for size in sizes:
        nearest.search(csr_matrix(documents[first : first + size]), first=first)
        first += size
    assert [found.tolist() for found in nearest.rows] == brute_force(queries, documents, number)


def test_inner_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    rows = unit_rows(csr_matrix(random.integers(0, 3, (90, 8)).astype(np.float32)))
    whole = Nearest(rows[:20], number=7)
    whole.search(rows[20:], first=0)
    monkeypatch.setattr(similarity, "_QUERY_ROWS", 3)
    monkeypatch.setattr(similarity, "_DOCUMENT_ROWS", 11)
    parts = Nearest(rows[:20], number=7)
    parts.search(rows[20:], first=0)
    assert [one.tolist() for one in parts.rows] == [one.tolist() for one in whole.rows]


def test_weights_are_scikit_learns(tmp_path: Path) -> None:
    texts = ["a red dog runs", "the dog sleeps, the DOG snores", "a boy's red cat", "and then there was"]
    frequencies = {
        word: sum(word in content_words(text) for text in texts) for text in texts for word in content_words(text)
    }
    collections_on_disk.write_vocabulary(tmp_path, Counter(frequencies), len(texts))
    found = tf_idf(texts, collections_on_disk.read_vocabulary(tmp_path, "")).toarray()
    expected = TfidfVectorizer(analyzer=content_words, sublinear_tf=True).fit_transform(texts).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[3].any()


def test_common_words_of_large_collections_are_left_out() -> None:
    assert weigh_words({"dog": 101, "elk": 1, "cat": 100}, 2000)[0] == ["cat", "elk"]
    assert weigh_words({"dog": 101}, 1999)[0] == ["dog"]


@settings(max_examples=40)
@given(st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=30), st.text(max_size=2))
def test_a_table_numbers_words_as_a_dictionary_does(words: set[str], other: str) -> None:
    """Of any alphabet, the empty word too."""
    numbers = {word: number for number, word in enumerate(sorted(words))}
    with TemporaryDirectory() as folder:
        word_table.write(Path(folder), list(numbers))
        table = WordTable(Path(folder))
        for word in (*words, *(word[:-1] for word in words), *(f"{word}a" for word in words), other):
            assert table.number_of(word) == numbers.get(word)


def test_a_process_that_maps_a_table_holds_next_to_nothing_of_it(tmp_path: Path) -> None:
    words = [f"word{number:07d}" for number in range(200_000)]
    word_table.write(tmp_path, words)
    tracemalloc.start()
    table = WordTable(tmp_path)
    assert [table.number_of(word) for word in words[:: len(words) // 100]] == list(range(0, 200_000, 2000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_the_first_distinct_texts_are_those_of_all() -> None:
    random = np.random.default_rng(2)
    texts = [" ".join(random.choice(list("abcdefg"), 3)) for _ in range(60)]
    every = similarity.distinct(texts, most=len(texts))
    assert 5 < len(every) < 60
    assert similarity.distinct(texts, most=5) == every[:5]
    said = ["this dog of a movie", "of this dog of a movie", "a cat"]
    assert similarity.distinct(said, most=3) == ("this dog of a movie", "a cat")
