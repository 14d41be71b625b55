"""Random numbers for many samples at once: `utils.seed.mix` on whole arrays, and what is made of its keys.

A NumPy generator costs some 20 us to make and some 3 us a call, which for a ten-word caption is most of its masking; hashing a
micro-batch's keys together costs about 1 us a sample, and numbers are then taken from plain lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_MASK_64 = (1 << 64) - 1


def mix_many(*parts: int | NDArray[Any]) -> Integers:
    """`mix` on integers and integer arrays that broadcast together; equal to `mix` element by element."""
    state = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            if isinstance(part, np.ndarray):
                state = state ^ part.astype(np.int64).view(np.uint64)
            else:
                state = state ^ np.uint64(int(part) & _MASK_64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return np.asarray(state >> np.uint64(1)).astype(np.int64)


def uniform(keys: Integers) -> NDArray[np.float64]:
    """Numbers in [0, 1) from keys of `mix_many`, same shape."""
    return (keys >> 10).astype(np.float64) * 2.0**-53


def ranges(starts: Integers, counts: Integers) -> Integers:
    """starts[i], starts[i] + 1, ... (counts[i] numbers) for each i, end to end: [sum counts]."""
    before = np.cumsum(counts) - counts
    result: Integers = np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
    return result


def draw_distinct(keys: Integers, counts: Integers, wanted: int) -> tuple[Integers, Integers]:
    """Up to `wanted` different numbers below counts[i] for every row i; all of them, shuffled, where there are fewer.

    keys: [n] random keys, one a row. counts: [n] candidates of each row, may be 0.
    Returns the rows and the numbers drawn, [m] each, ordered by row and then by draw.
    """
    drawn = np.full((len(counts), wanted), -1, np.int64)
    for turn in range(wanted):
        left = counts - turn
        has_left = left > 0
        number = np.where(has_left, mix_many(keys, turn) % np.maximum(left, 1), -1)
        # The number counts what is left: step over what was drawn before, from the smallest up.
        for earlier in np.sort(drawn[:, :turn], axis=1).T:
            number += has_left & (number >= earlier)
        drawn[:, turn] = number
    rows, turns = np.nonzero(drawn >= 0)
    return rows.astype(np.int64), drawn[rows, turns]


_FIRST_NUMBERS = 32


class Uniforms:
    """Endless numbers in [0, 1), one after another: a pure function of a key."""

    __slots__ = ("_at", "_key", "_numbers")

    def __init__(self, key: int, numbers: list[float] | None = None) -> None:
        """numbers: the first of them where they are known already (see `uniforms_of`)."""
        self._key, self._at = key, 0
        self._numbers: list[float] = [] if numbers is None else numbers

    def __next__(self) -> float:
        at = self._at
        if at >= len(self._numbers):
            # Twice as many each time; number i depends on (key, i) alone, however many are made at once.
            more = np.arange(at, max(2 * at, _FIRST_NUMBERS))
            self._numbers = self._numbers + uniform(mix_many(self._key, more)).tolist()
        self._at = at + 1
        return self._numbers[at]

    def below(self, limit: int) -> int:
        """A whole number in 0 .. limit - 1."""
        return int(next(self) * limit)


def uniforms_of(keys: Integers) -> list[Uniforms]:
    """One sequence of numbers for each key, their beginnings made together."""
    numbers = uniform(mix_many(keys[:, None], np.arange(_FIRST_NUMBERS)[None, :])).tolist()
    return [Uniforms(key, own) for key, own in zip(keys.tolist(), numbers, strict=True)]
