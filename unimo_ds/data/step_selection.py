"""What is drawn for a step, before any sample is read: each use of a sample, and the sequences that will be made of it.

Letters: B samples of a step, S sequences of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.draws import Integers
from unimo_ds.data.schema import Kind, LanguageObjective, Level, SequenceRole


class PlannedSequence(NamedTuple):
    """One sequence that will be made."""

    role: SequenceRole
    level: Level
    text: int
    """Number of its text in the sample's canonical order (`members.texts_of`); -1: none."""
    image: int
    """Global index of the sample whose regions it has; -1: none. A joint sequence without one shares the pair's own image."""
    length: int
    """Positions; a corrupted sequence may become a little shorter."""
    seed: int


@dataclass(frozen=True)
class Selection:
    """One use of one sample."""

    sample: int
    """Global sample index."""
    position: int
    """Position in the global sample sequence."""
    kind: Kind
    objective: LanguageObjective
    """Of the corrupted sequence's text; meaningless for images."""
    fragments: tuple[int, ...]
    """Lengths of its sequence-to-sequence fragments; empty for the masked objective."""
    sequences: tuple[PlannedSequence, ...]
    """Ordered by role, the corrupted one first."""

    @property
    def num_positions(self) -> int:
        return sum(sequence.length for sequence in self.sequences)


@dataclass(frozen=True)
class StepSelection:
    """All selections of a step, in columns. `selection[row]` is one of them."""

    samples: Integers
    """[B]"""
    positions: Integers
    """[B]"""
    kinds: Integers
    """[B]"""
    objectives: Integers
    """[B] LanguageObjective"""
    predicted: Integers
    """[B] approximate number of positions that will predict a token."""
    fragment_starts: Integers
    """[B + 1]"""
    fragment_lengths: Integers
    """[sum of fragments]"""
    sequence_starts: Integers
    """[B + 1]"""
    roles: Integers
    """[S] SequenceRole; here and below ordered by sample, then role, then draw."""
    levels: Integers
    """[S]"""
    texts: Integers
    """[S] number within the sample; -1: none."""
    images: Integers
    """[S] global sample index; -1: none."""
    lengths: Integers
    """[S]"""
    shared_lengths: Integers
    """[S] positions of another sequence that it sees before its own; they only cost attention."""
    encoded_images: Integers
    """[S] image inputs that image layers encode for it; 0 for joint sequences, which reuse those of SINGLE_IMAGE."""
    seeds: Integers
    """[S]"""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_positions(self) -> Integers:
        """[B] stream positions of each sample."""
        # A sample has at least one sequence, so no segment is empty.
        result: Integers = np.add.reduceat(self.lengths, self.sequence_starts[:-1]) if len(self) else self.samples[:0]
        return result

    def __getitem__(self, row: int) -> Selection:
        return next(self.rows(np.array([row])))

    def rows(self, rows: NDArray[Any]) -> Iterator[Selection]:
        """The selections at these rows, in order."""
        for row in rows.tolist():
            part = slice(int(self.sequence_starts[row]), int(self.sequence_starts[row + 1]))
            columns = zip(
                self.roles[part].tolist(),
                self.levels[part].tolist(),
                self.texts[part].tolist(),
                self.images[part].tolist(),
                self.lengths[part].tolist(),
                self.seeds[part].tolist(),
                strict=True,
            )
            fragments = self.fragment_lengths[self.fragment_starts[row] : self.fragment_starts[row + 1]]
            yield Selection(
                sample=int(self.samples[row]),
                position=int(self.positions[row]),
                kind=_KINDS[self.kinds[row]],
                objective=_OBJECTIVES[self.objectives[row]],
                fragments=tuple(fragments.tolist()),
                sequences=tuple(
                    PlannedSequence(_ROLES[role], _LEVELS[level], text, image, length, seed)
                    for role, level, text, image, length, seed in columns
                ),
            )


# Indexing a tuple is several times faster than calling the enumeration, which happens ten times per sample.
_KINDS, _OBJECTIVES, _ROLES, _LEVELS = tuple(Kind), tuple(LanguageObjective), tuple(SequenceRole), tuple(Level)
