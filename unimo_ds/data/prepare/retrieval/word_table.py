"""Millions of words in two files, each numbered by its place in sorted order: processes map the files, since a dictionary in
each process would take 0.2 GB per million words.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unimo_ds.utils.whole_file import write_made

_WORDS, _ENDS = "words.npy", "word-ends.npy"
_FREQUENT = 2**16
"""Words whose numbers are cached: most words of any text."""


def write(folder: Path, words: Sequence[str]) -> None:
    """words: distinct, sorted."""
    encoded = [word.encode() for word in words]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.fromiter(itertools.accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
    for name, array in ((_WORDS, text), (_ENDS, ends)):
        write_made(folder / name, functools.partial(np.save, arr=array))


class WordTable:
    """Reads the output of `write`. UTF-8 sorts like Unicode."""

    def __init__(self, folder: Path) -> None:
        self._text, self._ends = (memoryview(np.load(folder / name, mmap_mode="r")) for name in (_WORDS, _ENDS))
        self._numbers = range(len(self._ends) - 1)
        self.number_of = functools.lru_cache(_FREQUENT)(self._number_of)
        """A word's number; None if it is not in the table."""

    def _number_of(self, word: str) -> int | None:
        wanted = word.encode()
        number = bisect.bisect_left(self._numbers, wanted, key=self._word)
        return number if number in self._numbers and self._word(number) == wanted else None

    def _word(self, number: int) -> bytes:
        return bytes(self._text[self._ends[number] : self._ends[number + 1]])
