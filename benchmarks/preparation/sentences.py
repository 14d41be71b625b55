"""A collection of any size out of a small one: sentences put together from pieces of real ones.

A sentence is cut before conjunctions, prepositions and relative words; a new one takes two to four pieces of different sentences,
so that words, their frequencies and their company are those of real text, while no two sentences are alike. A function of the
texts, the number and the seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

_BREAK = re.compile(r"(?<=[.!?])\s+")
_JOINT = re.compile(r"\s+(?=(?:and|but|or|with|in|on|at|of|from|for|to|that|which|who|while|as|by|into|over)\s)")
_FEWEST_WORDS, _MOST_WORDS = 5, 40
_ROUND = 100_000


def pieces_of(paths: Sequence[Path]) -> list[str]:
    """Pieces of the sentences in text files; of a .tsv, those in its first column."""
    found: dict[str, None] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            text = line.partition("\t")[0] if path.suffix == ".tsv" else line
            if text.strip().startswith("="):
                continue
            for sentence in _BREAK.split(text.strip()):
                for piece in _JOINT.split(sentence):
                    if len(piece.split()) >= 2:
                        found[piece.strip()] = None
    return list(found)


def make(pieces: Sequence[str], number: int, *, seed: int = 0) -> Iterator[str]:
    """`number` distinct sentences."""
    random = np.random.default_rng(seed)
    seen: set[tuple[int, ...]] = set()
    while len(seen) < number:
        chosen = random.integers(0, len(pieces), (_ROUND, 4))
        counts = random.integers(2, 5, _ROUND)
        for row, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            mixture = tuple(row[:count])
            sentence = " ".join(pieces[i] for i in mixture)
            if _FEWEST_WORDS <= sentence.count(" ") + 1 <= _MOST_WORDS and mixture not in seen:
                seen.add(mixture)
                yield sentence
                if len(seen) == number:
                    return
