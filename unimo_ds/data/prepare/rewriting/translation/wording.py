"""Adjacent words in a corpus: word pairs that no caption contains are bad language, whatever they mean."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.rewriting import word_classes

_BEGINNING, _END = "<", ">"
_AT_ONCE = 2_000_000
"""Word pairs buffered before they are counted."""
_MOST = 5_000_000
"""Pairs kept (80 MB); beyond that the rarest are dropped."""

Hashes = NDArray[np.uint64]


class UsualPairs:
    """Pairs of adjacent words that occur at least twice in a corpus, by hash."""

    def __init__(self, hashes: Hashes) -> None:
        """hashes: [n], sorted."""
        self.hashes = hashes

    def allow(self, source: str, text: str) -> bool:
        """Whether each pair in the text is usual or occurs in its source."""
        new = np.array(sorted(_pairs(text) - _pairs(source)), np.uint64)
        if not len(self.hashes):
            return not len(new)
        at = np.minimum(np.searchsorted(self.hashes, new), len(self.hashes) - 1)
        return bool((self.hashes[at] == new).all())


def learn(texts: Iterable[str]) -> UsualPairs:
    """The usual pairs of the texts. Memory is bounded."""
    known, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    waiting: list[int] = []
    for text in texts:
        waiting += _pairs(text)
        if len(waiting) >= _AT_ONCE:
            known, counts = _merged(known, counts, waiting)
            waiting = []
    known, counts = _merged(known, counts, waiting)
    return UsualPairs(known[counts > 1])


def _merged(known: Hashes, counts: NDArray[np.int64], waiting: list[int]) -> tuple[Hashes, NDArray[np.int64]]:
    hashes, places = np.unique(np.concatenate([known, np.array(waiting, np.uint64)]), return_inverse=True)
    weights = np.concatenate([counts, np.ones(len(waiting), np.int64)])
    totals = np.bincount(places, weights, minlength=len(hashes)).astype(np.int64)
    if len(hashes) > _MOST:
        kept = totals > np.partition(totals, len(totals) - _MOST)[len(totals) - _MOST]
        hashes, totals = hashes[kept], totals[kept]
    return hashes, totals


def _pairs(text: str) -> set[int]:
    words = [_BEGINNING, *word_classes.words_of(text), _END]
    return {
        int.from_bytes(hashlib.blake2b(f"{one} {other}".encode(), digest_size=8).digest(), "little")
        for one, other in itertools.pairwise(words)
    }
