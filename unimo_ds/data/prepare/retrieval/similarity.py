"""Exact nearest neighbours among sparse vectors, block by block: memory does not grow with the collection.

A collection is a sequence of blocks with rows of unit length; the score of a query and a row is their dot product. Scores are
rounded, and ties go to the earlier row, so that the result depends neither on the last bit of a sum nor on the division into
blocks.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_QUERY_ROWS, _DOCUMENT_ROWS = 256, 50_000
"""Rows multiplied at a time: at most 13 million scores, 160 MB."""
_DIGITS = 6
_RANKED_TOGETHER = 4
"""Rows that may wait to be ranked, as a multiple of the wanted number."""
_COMMON_SHARE, _FEW = 0.05, 2000
"""Words in more than this fraction of at least so many texts are ignored: they do not discriminate and cost the most."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """The words of a text without English stop words."""
    return [word for word in words_of(text) if word not in ENGLISH_STOP_WORDS]


@dataclass(frozen=True)
class Vocabulary:
    """The words to compare, with their weights."""

    number_of: Callable[[str], int | None]
    """Number of a word, from 0; None if it is not one of them."""
    weights: Floats
    """[V]"""


def weigh_words(frequencies: Mapping[str, int], num_texts: int) -> tuple[list[str], Floats]:
    """The words to compare, sorted, and their smoothed inverse document frequencies.

    frequencies: word -> number of texts that contain it.
    """
    most = _COMMON_SHARE * num_texts if num_texts >= _FEW else num_texts
    words = sorted(word for word, number in frequencies.items() if number <= most)
    weights = [math.log((1 + num_texts) / (1 + frequencies[word])) + 1 for word in words]
    return words, np.array(weights, np.float32)


def tf_idf(texts: Iterable[str], vocabulary: Vocabulary) -> csr_matrix:
    """[n, V] float32: (1 + log count) x weight of each word, rows of unit length (or empty)."""
    columns: list[int] = []
    counts: list[int] = []
    starts = [0]
    for text in texts:
        found = Counter(n for n in map(vocabulary.number_of, content_words(text)) if n is not None)
        for column in sorted(found):
            columns.append(column)
            counts.append(found[column])
        starts.append(len(columns))
    values = (1 + np.log(np.array(counts, np.float32))) * vocabulary.weights[columns]
    shape = (len(starts) - 1, len(vocabulary.weights))
    return unit_rows(csr_matrix((values.astype(np.float32), np.array(columns, np.int64), np.array(starts)), shape))


def unit_rows(rows: csr_matrix) -> csr_matrix:
    """The rows scaled to unit length; empty ones stay empty."""
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    scaled: csr_matrix = rows.multiply(scale[:, None]).tocsr().astype(np.float32)
    return scaled


class Nearest:
    """The best rows for each query so far. Each row is offered once, in order."""

    def __init__(self, queries: csr_matrix, *, number: int) -> None:
        self.queries, self.number = queries, number
        count = queries.shape[0]
        self._rows: list[Integers] = [np.zeros(0, np.int64)] * count
        self._scores: list[Floats] = [np.zeros(0, np.float32)] * count
        self._edges = np.zeros(count, np.float32)
        """[count] scores that a row must exceed to be among the best."""
        self._waiting: list[list[tuple[Integers, Floats]]] = [[] for _ in range(count)]
        """Offered but not ranked yet: ranking costs more than filtering, so it is done for many rows at once."""
        self._num_waiting = np.zeros(count, np.int64)

    @property
    def rows(self) -> list[Integers]:
        """For each query up to `number` rows, best first."""
        self._settle_all()
        return self._rows

    @property
    def scores(self) -> list[Floats]:
        """Their scores, rounded."""
        self._settle_all()
        return self._scores

    def search(self, block: csr_matrix, *, first: int) -> None:
        """Search a block whose first row has index `first`; call this in the order of the blocks."""
        for start in range(0, block.shape[0], _DOCUMENT_ROWS):
            documents = block[start : start + _DOCUMENT_ROWS].T.tocsr()
            for at in range(0, self.queries.shape[0], _QUERY_ROWS):
                self._sift(at, (self.queries[at : at + _QUERY_ROWS] @ documents).tocsr(), first + start)

    def _sift(self, at: int, scores: csr_matrix, first: int) -> None:
        """Offer the few scores, for queries from `at` on, that may be among the best."""
        edges = np.repeat(self._edges[at : at + scores.shape[0]], np.diff(scores.indptr))
        near = np.flatnonzero(scores.data > edges - 10.0**-_DIGITS)
        rows, values = scores.indices[near].astype(np.int64) + first, scores.data[near]
        ends = np.searchsorted(near, scores.indptr)
        for i in np.flatnonzero(np.diff(ends)).tolist():
            part = slice(ends[i], ends[i + 1])
            self.offer(at + i, rows[part], values[part])

    def offer(self, query: int, rows: Integers, scores: Floats) -> None:
        """Add rows for one query, with their scores."""
        self._waiting[query].append((rows, scores))
        self._num_waiting[query] += len(rows)
        if self._num_waiting[query] > _RANKED_TOGETHER * self.number:
            self._settle(query)

    def _settle_all(self) -> None:
        for query in np.flatnonzero(self._num_waiting).tolist():
            self._settle(query)

    def _settle(self, query: int) -> None:
        rows = np.concatenate([self._rows[query], *(one for one, _ in self._waiting[query])])
        late = np.round(np.concatenate([one for _, one in self._waiting[query]]), _DIGITS)
        scores = np.concatenate([self._scores[query], late])
        kept = scores > self._edges[query]
        # Keep rows ranked already: among equal scores the earlier rows win.
        kept[: len(self._rows[query])] = True
        rows, scores = rows[kept], scores[kept]
        if len(scores) > self.number:
            edge = np.partition(scores, len(scores) - self.number)[len(scores) - self.number]
            rows, scores = rows[scores >= edge], scores[scores >= edge]
        order = np.lexsort((rows, -scores))[: self.number]
        self._rows[query], self._scores[query] = rows[order], scores[order]
        if len(order) == self.number:
            self._edges[query] = self._scores[query][-1]
        self._waiting[query], self._num_waiting[query] = [], 0


def distinct(texts: Sequence[str], *, most: int) -> tuple[str, ...]:
    """The first `most` texts, without those whose words are a subset or superset of a text's already kept."""
    kept: dict[str, set[str]] = {}
    for text in texts:
        if len(kept) == most:
            break
        words = set(words_of(text))
        if not any(words <= other or other <= words for other in kept.values()):
            kept[text] = words
    return tuple(kept)
