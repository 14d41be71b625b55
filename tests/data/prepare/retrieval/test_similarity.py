"""Block-wise search gives what brute force over the whole collection gives, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from unimo_ds.data.prepare.retrieval import similarity
from unimo_ds.data.prepare.retrieval.similarity import Nearest, content_words, make_vocabulary, tf_idf, unit_rows


def brute_force(queries: np.ndarray, documents: np.ndarray, number: int) -> list[list[int]]:
    scores = np.round(queries @ documents.T, 6)
    return [[int(i) for i in np.lexsort((np.arange(len(row)), -row)) if row[i] > 0][:number] for row in scores]


@settings(max_examples=40, deadline=None)
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


def test_weights_are_scikit_learns() -> None:
    texts = ["a red dog runs", "the dog sleeps, the DOG snores", "a boy's red cat", "and then there was"]
    frequencies = {
        word: sum(word in content_words(text) for text in texts) for text in texts for word in content_words(text)
    }
    found = tf_idf(texts, make_vocabulary(frequencies, len(texts))).toarray()
    expected = TfidfVectorizer(analyzer=content_words, sublinear_tf=True).fit_transform(texts).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[3].any()


def test_common_words_of_large_collections_are_left_out() -> None:
    made = make_vocabulary({"dog": 101, "cat": 100, "elk": 1}, 2000)
    assert set(made.numbers) == {"cat", "elk"}
    assert set(make_vocabulary({"dog": 101}, 1999).numbers) == {"dog"}


def test_the_first_distinct_texts_are_those_of_all() -> None:
    random = np.random.default_rng(2)
    texts = [" ".join(random.choice(list("abcdefg"), 3)) for _ in range(60)]
    every = similarity.distinct(texts)
    assert 5 < len(every) < 60
    assert similarity.distinct(texts, most=5) == every[:5]
