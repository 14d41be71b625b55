"""Random numbers for many samples at once: `utils.seed.mix` on whole arrays, and numbers made from its keys.

A NumPy generator takes about 20 us to create and 3 us per call, which is most of the time for masking a ten-word caption;
hashing a micro-batch's keys together takes about 1 us per sample, and numbers are then taken from plain lists.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_MASK_64 = (1 << 64) - 1


def mix_many(*parts: int | NDArray[Any]) -> Integers:
    """`mix` on integers and integer arrays that broadcast; equals `mix` element by element."""
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
    """Up to `wanted` distinct numbers below counts[i] for every row i; all of them, shuffled, if there are fewer.

    keys: [n] random keys, one per row. counts: [n] candidates in each row, may be 0.
    Returns the rows and the numbers drawn, [m] each, ordered by row and then by draw.
    """
    drawn = np.full((len(counts), wanted), -1, np.int64)
    for turn in range(wanted):
        left = counts - turn
        has_left = left > 0
        number = np.where(has_left, mix_many(keys, turn) % np.maximum(left, 1), -1)
        # The number indexes what is left: skip what was drawn before, from the smallest up.
        for earlier in np.sort(drawn[:, :turn], axis=1).T:
            number += has_left & (number >= earlier)
        drawn[:, turn] = number
    rows, turns = np.nonzero(drawn >= 0)
    return rows.astype(np.int64), drawn[rows, turns]


_FIRST_NUMBERS = 32


class Uniforms(itertools.chain[float]):
    """An endless iterator of numbers in [0, 1), a pure function of a key. (Its base class makes `next` cheap.)"""

    def __new__(cls, key: int, numbers: Sequence[float] = ()) -> Uniforms:
        """numbers: the first ones, if already computed (see `uniforms_of`)."""
        return super().__new__(cls, numbers, _numbers_from(len(numbers), key))

    def below(self, limit: int) -> int:
        """An integer in 0 .. limit - 1."""
        return int(next(self) * limit)


def _numbers_from(at: int, key: int) -> Iterator[float]:
    """The numbers from number `at` on, made in growing blocks: number i depends only on (key, i)."""
    while True:
        more = np.arange(at, max(2 * at, _FIRST_NUMBERS))
        yield from uniform(mix_many(key, more)).tolist()
        at += len(more)


def uniforms_of(keys: Integers, counts: Integers) -> list[Uniforms]:
    """One `Uniforms` for each key; its first `counts` [n] numbers (about as many as will be needed) are computed together."""
    ends = np.cumsum(counts)
    within = ranges(np.zeros(len(counts), np.int64), counts)
    numbers = uniform(mix_many(np.repeat(keys, counts), within)).tolist()
    bounds = zip(keys.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    return [Uniforms(key, numbers[start:end]) for key, start, end in bounds]
