"""A choice among replacements that no reader can tell from originals by the words it makes stand together.

The corpus suggests how often each replacement should be taken; that alone gives rewrites away, for a common word is often
replaced and seldom put in, as nothing replaces itself. So every word, run of two or three words around the change, and pair of a
word with what it is tied to has a potential h: a replacement is taken with the suggested weight times exp(sum of h of all it
brings in - sum of h of all it takes out), and h is fitted until everything is brought in as often as it is taken out, over all
captions that are given together. (Iterative scaling of a maximum-entropy model; each round moves h by a share of the logarithm of
taken out over brought in.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.rewriting.replacements import Filling
from unimo_ds.data.prepare.rewriting.runs_of_words import NO_PLACE, NUM_PLACES, places_of, starts_of
from unimo_ds.data.prepare.rewriting.slots import Slot
from unimo_ds.utils.batched import batched

_ROUNDS = 30
_STEP = 0.15
_SMOOTHING = 1.0
"""Times that everything is taken to have been brought in and taken out besides."""
_BLOCK = 4000
"""Captions whose potentials are looked up at a time."""
_MOST_OF_ALL = 0.95
"""Of a caption's replacements, where more are asked for than there are."""
_FIRST_ROUNDS = 5
_LAST_ROUNDS = 20
_SLOTH = 1.3
"""Powers with which a caption's patience is bettered: the chances grow less than it does."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replacement:
    slot: Slot
    text: str


@dataclass(frozen=True)
class _Block:
    """Replacements of some captions, caption after caption and slot after slot."""

    weights: Floats
    """[n] logarithms of what the corpus suggests."""
    slot_starts: NDArray[np.int64]
    """[s] of each slot, its first replacement."""
    caption_starts: NDArray[np.int64]
    """[c] of each caption that has any, its first replacement."""
    puts_in: NDArray[np.int32]
    """Places of all that the replacements bring in, one after another."""
    puts_in_starts: NDArray[np.int64]
    """[n]"""
    takes_out: NDArray[np.int32]
    """Likewise of what the slots' own texts are part of."""
    takes_out_starts: NDArray[np.int64]
    """[s]"""

    def scores(self, potentials: Floats) -> Floats:
        """[n] logarithms of the weights that replacements are drawn with."""
        gained = np.add.reduceat(potentials[self.puts_in], self.puts_in_starts)
        lost = np.add.reduceat(potentials[self.takes_out], self.takes_out_starts)
        balanced: Floats = self.weights + gained - np.repeat(lost, self._sizes(self.slot_starts))
        return balanced

    def counts(self, chances: Floats, num_places: int) -> tuple[Floats, Floats]:
        """[num_places] how often each is taken out and brought in."""
        sizes = np.diff(self.puts_in_starts, append=len(self.puts_in))
        brought_in = np.bincount(self.puts_in, np.repeat(chances, sizes), minlength=num_places)
        of_slots = np.add.reduceat(chances, self.slot_starts)
        sizes = np.diff(self.takes_out_starts, append=len(self.takes_out))
        taken_out = np.bincount(self.takes_out, np.repeat(of_slots, sizes), minlength=num_places)
        return taken_out.astype(np.float64), brought_in.astype(np.float64)

    def chances(self, scores: Floats, patience: Floats, wanted: Floats, rounds: int) -> Floats:
        """[n] chance of each replacement to be taken, so that those of a caption add up to the number wanted.

        A replacement of weight p has the chance 1 - exp(-p t): it is in proportion where small, and never above one. patience:
        [c] t of each caption, bettered in place.
        """
        sizes = self._sizes(self.caption_starts)
        weights = np.exp(scores - np.repeat(np.maximum.reduceat(scores, self.caption_starts), sizes))
        weights /= np.repeat(np.add.reduceat(weights, self.caption_starts), sizes)
        for _ in range(rounds):
            found: Floats = 1 - np.exp(-np.minimum(weights * np.repeat(patience, sizes), 50))
            patience *= (wanted / np.maximum(np.add.reduceat(found, self.caption_starts), 1e-9)) ** _SLOTH
        return found

    def _sizes(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        sizes: NDArray[np.int64] = np.diff(starts, append=len(self.weights))
        return sizes


def choose(
    fillings: Sequence[Sequence[Filling]], *, number: int, randomness: np.random.Generator
) -> list[list[Replacement]]:
    """Of each caption the replacements that are taken, in any order, then as many spare ones and a few more.

    fillings: of each caption, what may stand in its slots. number: how many of each will be used, which is what is balanced.
    """
    blocks = [_block(some) for some in batched(fillings, _BLOCK)]
    blocks, num_places = _renumbered(blocks)
    all_chances = _fit([block for block in blocks if len(block.weights)], number, num_places)
    chosen: list[list[Replacement]] = []
    start = 0
    for of_caption in fillings:
        options = [(one, i) for one in of_caption for i in range(len(one.texts))]
        order = _drawn(all_chances[start : start + len(options)], randomness)[: 2 * number + 2]
        chosen.append([Replacement(one.slot, one.texts[i]) for one, i in (options[i] for i in order.tolist())])
        start += len(options)
    return chosen


def _drawn(chances: Floats, randomness: np.random.Generator) -> NDArray[np.int64]:
    """All numbers, first those drawn: each by its chance, as many as the chances add up to (systematic sampling)."""
    order = randomness.permutation(len(chances))
    steps = np.floor(np.cumsum(chances[order]) + randomness.random())
    is_taken = np.diff(steps, prepend=0) > 0
    return np.concatenate([order[is_taken], order[~is_taken]])


def _renumbered(blocks: Sequence[_Block]) -> tuple[list[_Block], int]:
    """The blocks with the places that they use numbered from 0, `NO_PLACE` the first, and how many there are."""
    is_used = np.zeros(NUM_PLACES, bool)
    is_used[NO_PLACE] = True
    for block in blocks:
        is_used[block.puts_in] = is_used[block.takes_out] = True
    new = np.cumsum(is_used, dtype=np.int32) - np.int32(1)
    renumbered = [
        dataclasses.replace(block, puts_in=new[block.puts_in], takes_out=new[block.takes_out]) for block in blocks
    ]
    return renumbered, int(is_used.sum())


def _fit(blocks: Sequence[_Block], number: int, num_places: int) -> Floats:
    """The chances of all replacements with fitted potentials."""
    potentials = np.zeros(num_places)
    sizes = [block._sizes(block.caption_starts) for block in blocks]
    wanted = [np.minimum(number, _MOST_OF_ALL * one) for one in sizes]
    patience = [one.astype(np.float64).copy() for one in wanted]
    for round_number in range(_ROUNDS if blocks else 0):
        taken_out, brought_in = np.full(num_places, _SMOOTHING), np.full(num_places, _SMOOTHING)
        for block, of_block, goal in zip(blocks, patience, wanted, strict=True):
            rounds = 3 if round_number < _FIRST_ROUNDS else 1
            chances = block.chances(block.scores(potentials), of_block, goal, rounds)
            removed, inserted = block.counts(chances, num_places)
            taken_out += removed
            brought_in += inserted
        potentials += _STEP * np.log(taken_out / brought_in)
        potentials[NO_PLACE] = 0
    found = [
        block.chances(block.scores(potentials), of_block, goal, _LAST_ROUNDS)
        for block, of_block, goal in zip(blocks, patience, wanted, strict=True)
    ]
    return np.concatenate([*found, np.zeros(0)])


def _block(fillings: Sequence[Sequence[Filling]]) -> _Block:
    slots = [one for of_caption in fillings for one in of_caption]
    of_captions = [sum(len(one.texts) for one in of_caption) for of_caption in fillings]
    weights = np.concatenate([*(one.weights for one in slots), np.zeros(0)])
    return _Block(
        np.log(np.maximum(weights, 1e-12)),
        starts_of(np.array([len(one.texts) for one in slots], np.int64)),
        starts_of(np.array([size for size in of_captions if size], np.int64)),
        *places_of(slots),
    )
