"""Features of a text in a slot, as places in a table: its words, the word sequences it forms there, its dependencies.

Features are hashed, so that memory is constant; two features with the same place count as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.rewriting.replacements import Filling, Group, hash_of
from unimo_ds.data.prepare.rewriting.slots import Slot

NUM_PLACES = 2**22
NO_PLACE = 0
_MULTIPLIERS = tuple(np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
_PAIRS = np.array([0x27D4EB2F165667C5, 0x85EBCA77C2B2AE63], np.uint64)
_SHIFT = np.uint64(64 - 22)

Places = NDArray[np.int32]


def places_of(fillings: Sequence[Filling]) -> tuple[Places, NDArray[np.int64], Places, NDArray[np.int64]]:
    """Places of all texts of all fillings, concatenated, with the start of each text; then the same for the slots' original
    texts."""
    sizes = np.array([len(one.texts) for one in fillings], np.int64)
    widths = np.array([_width(one.group) for one in fillings], np.int64)
    starts = starts_of(np.repeat(widths, sizes))
    own_starts = starts_of(widths)
    found = np.zeros(int((widths * sizes).sum()), np.int32)
    own_found = np.zeros(int(widths.sum()), np.int32)
    first = starts_of(sizes)
    by_group: dict[int, list[int]] = {}
    for i, one in enumerate(fillings):
        by_group.setdefault(id(one.group), []).append(i)
    for members in by_group.values():
        group = fillings[members[0]].group
        around, tied = _surroundings([fillings[i].slot for i in members])
        of_slot = np.repeat(np.arange(len(members)), sizes[members])
        rows = np.concatenate([fillings[i].numbers for i in members])
        candidates = np.concatenate([np.arange(first[i], first[i] + sizes[i]) for i in members])
        _put(found, starts[candidates], _places(group, rows, around[of_slot], tied[of_slot]))
        own = np.array([fillings[i].own for i in members])
        _put(own_found, own_starts[members], _places(group, own, around, tied))
    return found, starts, own_found, own_starts


def _width(group: Group) -> int:
    """Places of the group's longest text: of m words, m words, m + 1 pairs, m + 2 triples and two dependencies."""
    most: int = group.words.shape[1]
    return 3 * most + 5


def starts_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start of each of several consecutive ranges, given their sizes."""
    return np.cumsum(sizes) - sizes


def _put(target: Places, starts: NDArray[np.int64], places: Places) -> None:
    target[starts[:, None] + np.arange(places.shape[1])] = places


def _surroundings(slots: Sequence[Slot]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """[s, 4] hashes of the words around each slot, and [s, 2] of the words it depends on."""
    around = [[hash_of("a" if word == "an" else word) for word in slot.around] for slot in slots]
    tied = [[hash_of(f"{i} {word}") for i, word in enumerate(slot.context[2:])] for slot in slots]
    return np.array(around, np.uint64), np.array(tied, np.uint64)


def _places(group: Group, rows: NDArray[np.int64], around: NDArray[np.uint64], tied: NDArray[np.uint64]) -> Places:
    """[n, width] places of a group's texts, each in its own surroundings; padded with `NO_PLACE` for texts with fewer words."""
    places = np.full((len(rows), _width(group)), NO_PLACE, np.int32)
    lengths = group.lengths[rows]
    for length in np.unique(lengths).tolist():
        these = np.flatnonzero(lengths == length)
        own = group.words[rows[these], :length]
        run = np.concatenate([around[these, :2], own, around[these, 2:]], axis=1)
        ones = run * _MULTIPLIERS[0]
        twos = ones[:, :-1] + run[:, 1:] * _MULTIPLIERS[1]
        threes = twos[:, :-1] + run[:, 2:] * _MULTIPLIERS[2]
        whole = np.bitwise_xor.reduce(own * (2 * np.arange(length, dtype=np.uint64) + np.uint64(1)), axis=1)
        found = [
            ones[:, 2 : length + 2],
            twos[:, 1 : length + 2],
            threes[:, : length + 2],
            whole[:, None] * _PAIRS + tied[these] * _MULTIPLIERS[1],
        ]
        hashes = np.concatenate(found, axis=1)
        hashes ^= hashes >> np.uint64(29)
        places[these, : 3 * length + 5] = ((hashes * _MULTIPLIERS[0]) >> _SHIFT).astype(np.int32)
    return places
