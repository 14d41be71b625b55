"""Chooses replacements so that rewrites cannot be told from originals by the frequencies of their words and word sequences.

Corpus frequencies suggest a weight for each replacement, but these weights alone give rewrites away: a common word is often
replaced and rarely inserted, as nothing replaces itself. So each feature (a word, a sequence of two or three words around the
change, a pair of a word and one it depends on) has a potential h: a replacement is chosen with the suggested weight times
exp(sum of h of the features it inserts - sum of h of those it removes), and h is fitted until, over all given captions, every
feature is inserted as often as it is removed. (Iterative scaling of a maximum-entropy model; each round adds a fraction of
log(removed / inserted) to h.)
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
"""Pseudo-count added to each feature's insertions and removals."""
_BLOCK = 4000
"""Captions processed at a time."""
_MOST_OF_ALL = 0.95
"""Largest fraction of a caption's replacements to choose, if more are wanted than exist."""
_FIRST_ROUNDS = 5
_LAST_ROUNDS = 20
_SLOTH = 1.3
"""Exponent (over-relaxation) in updates of a caption's patience, since chances grow more slowly than patience."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replacement:
    slot: Slot
    text: str


@dataclass(frozen=True)
class _Block:
    """Replacements of some captions, ordered by caption and slot."""

    weights: Floats
    """[n] logarithms of the suggested weights."""
    slot_starts: NDArray[np.int64]
    """[s] first replacement of each slot."""
    caption_starts: NDArray[np.int64]
    """[c] first replacement of each caption that has any."""
    puts_in: NDArray[np.int32]
    """Places of the features that replacements insert, concatenated."""
    puts_in_starts: NDArray[np.int64]
    """[n] offsets in `puts_in`."""
    takes_out: NDArray[np.int32]
    """Places of the features of the slots' original texts, concatenated."""
    takes_out_starts: NDArray[np.int64]
    """[s] offsets in `takes_out`."""

    def scores(self, potentials: Floats) -> Floats:
        """[n] logarithms of the sampling weights."""
        gained = np.add.reduceat(potentials[self.puts_in], self.puts_in_starts)
        lost = np.add.reduceat(potentials[self.takes_out], self.takes_out_starts)
        balanced: Floats = self.weights + gained - np.repeat(lost, self._sizes(self.slot_starts))
        return balanced

    def counts(self, chances: Floats, num_places: int) -> tuple[Floats, Floats]:
        """[num_places] expected removals and insertions of each feature."""
        sizes = np.diff(self.puts_in_starts, append=len(self.puts_in))
        brought_in = np.bincount(self.puts_in, np.repeat(chances, sizes), minlength=num_places)
        of_slots = np.add.reduceat(chances, self.slot_starts)
        sizes = np.diff(self.takes_out_starts, append=len(self.takes_out))
        taken_out = np.bincount(self.takes_out, np.repeat(of_slots, sizes), minlength=num_places)
        return taken_out.astype(np.float64), brought_in.astype(np.float64)

    def chances(self, scores: Floats, patience: Floats, wanted: Floats, rounds: int) -> Floats:
        """[n] chance of each replacement to be chosen, so that those of a caption add up to the wanted number.

        A replacement with weight p has the chance 1 - exp(-p t): proportional to p if small, and never above one. patience:
        [c] t of each caption, improved in place.
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
    """For each caption, the chosen replacements in random order, followed by spares (2 * number + 2 in all).

    fillings: possible texts for each caption's slots. number: replacements to be used per caption; these are balanced.
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
    """All indices, sampled ones first: each with its chance, as many as the chances add up to (systematic sampling)."""
    order = randomness.permutation(len(chances))
    steps = np.floor(np.cumsum(chances[order]) + randomness.random())
    is_taken = np.diff(steps, prepend=0) > 0
    return np.concatenate([order[is_taken], order[~is_taken]])


def _renumbered(blocks: Sequence[_Block]) -> tuple[list[_Block], int]:
    """The blocks with the places in use renumbered from 0 (`NO_PLACE` first), and the number of these."""
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
    """The chances of all replacements under the fitted potentials."""
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
