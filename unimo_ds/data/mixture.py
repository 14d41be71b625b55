"""The global sequence of samples: which sample stands at position p, as a pure function of (corpus, weights, seed, p).

Two steps, both O(1) in the position:

1. The position's stream. A stream is one source of one kind. Streams are split off one after the other, each by a Beatty
   sequence: among the first p positions, exactly floor(p * share) belong to the stream. So every window of a cycle's length
   holds exactly the stated mix (1 : 1 : 5 is exact in any seven neighbours), and a step's number of pairs varies by at most one.
2. The stream's sample. A stream counts its own epochs. In each one its shards are permuted, neighbours in the permuted order
   form windows, and the samples of a window are permuted: reading stays within a few shards at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import KindWeights
from unimo_ds.data.draws import Integers
from unimo_ds.data.schema import Kind
from unimo_ds.utils.errors import UserError, nearest_name
from unimo_ds.utils.seed import generator

_SHARDS, _WINDOW = 1, 2
"""What a permutation is of; keeps their random keys apart."""

_LARGEST_DENOMINATOR = 2**31
"""Shares with smaller denominators are exact in 64-bit arithmetic; others are rounded to one in a million."""


class Order:
    """The endless sequence of samples of one run."""

    def __init__(
        self,
        kinds: NDArray[Any],
        source_ids: NDArray[Any],
        shard_of: NDArray[Any],
        kind_weights: KindWeights,
        source_weights: Mapping[str, float] | None = None,
        window: int = 8,
        seed: int = 0,
        *,
        source_names: tuple[str, ...] | list[str] = (),
    ) -> None:
        """Lay out the streams.

        kinds, source_ids, shard_of: [n] of every sample in the corpus, in global index order.
        kind_weights: ratio of the kinds; a kind of weight 0 is left out.
        source_weights: weight of sources within their kind by name; one that is not named weighs as many as it has samples.
        window: shards whose samples are shuffled together.
        source_names: name of each source id; needed where `source_weights` names any.

        Raises:
            UserError: a kind or source with weight but without samples, or a negative weight.
        """
        weights = dict(source_weights or {})
        for name, weight in weights.items():
            if weight > 0 and name not in source_names:
                raise UserError(
                    f"data.source_weights.{name}={weight} but the data has no such source; import it with --source {name}, or "
                    f"set data.source_weights.{name}=0 (data.source_weights=none drops all){nearest_name(name, source_names)}"
                )
            if weight < 0:
                raise UserError(f"data.source_weights.{name}={weight} must be at least 0")
        self.seed = seed
        shares: list[tuple[Fraction, _Stream]] = []
        for kind in Kind:
            kind_weight = getattr(kind_weights, kind.name.lower())
            if not kind_weight:
                continue
            members = np.flatnonzero(kinds == kind)
            if not len(members):
                name = kind.name.lower()
                raise UserError(
                    f"data.kind_weights.{name}={kind_weight} but the data holds no {name} sample; "
                    f"set data.kind_weights.{name}=0 or add {name} shards"
                )
            sources = source_ids[members]
            by_source = {int(source): members[sources == source] for source in np.unique(sources)}
            of_source = {
                source: _exact(weights.get(source_names[source], len(indices)) if source_names else len(indices))
                for source, indices in by_source.items()
            }
            total = sum(of_source.values(), Fraction(0))
            if not total:
                raise UserError(
                    f"every source of {kind.name.lower()} samples has data.source_weights 0; give one a weight"
                )
            for source, part in of_source.items():
                if part:
                    number = int(kind) << 32 | source
                    stream = _Stream(by_source[source], shard_of, window=window, seed=seed, number=number)
                    shares.append((_exact(kind_weight) * part / total, stream))
        self._streams = [stream for _, stream in shares]
        self._splits = _splits([share for share, _ in shares])

    def samples_at(self, positions: NDArray[Any]) -> Integers:
        """Global sample indices at `positions` [n] (each >= 0, any order): [n] int64."""
        stream_of, count = self.streams_at(positions)
        samples = np.empty(len(count), np.int64)
        for number in np.unique(stream_of):
            chosen = stream_of == number
            samples[chosen] = self._streams[number].samples_at(count[chosen])
        return samples

    def streams_at(self, positions: NDArray[Any]) -> tuple[Integers, Integers]:
        """The stream of each position and how many earlier positions that stream has: two [n] int64."""
        rest = np.asarray(positions, np.int64).copy()
        if rest.size and rest.min() < 0:
            raise ValueError(f"position {rest.min()} is below 0")
        stream_of = np.zeros(len(rest), np.int64)
        undecided = np.arange(len(rest))
        for number, split in enumerate(self._splits):
            here = rest[undecided]
            count = split.count_before(here)
            is_taken = split.count_before(here + 1) > count
            stream_of[undecided] = number
            rest[undecided] = np.where(is_taken, count, here - count)
            undecided = undecided[~is_taken]
        return stream_of, rest


@dataclass(frozen=True)
class _Split:
    """One stream's exact share of what earlier streams left over."""

    numerator: int
    denominator: int

    def count_before(self, positions: Integers) -> Integers:
        """How many of the positions before each of these belong to the stream: floor(p * share), without overflow."""
        cycles, rest = np.divmod(positions, self.denominator)
        result: Integers = cycles * self.numerator + rest * self.numerator // self.denominator
        return result


def _splits(shares: list[Fraction]) -> list[_Split]:
    splits, left = [], sum(shares, Fraction(0))
    for share in shares:
        part = share / left
        if part.denominator >= _LARGEST_DENOMINATOR:
            part = part.limit_denominator(10**6) or Fraction(1, _LARGEST_DENOMINATOR - 1)
        splits.append(_Split(part.numerator, part.denominator))
        left -= share
    return splits


def _exact(number: float) -> Fraction:
    """The fraction a person meant: 0.1 is one tenth, not its binary neighbour."""
    return Fraction(number) if isinstance(number, int | np.integer) else Fraction(repr(float(number)))


class _Stream:
    """One source of one kind: its own endless sequence of epochs."""

    def __init__(self, indices: Integers, shard_of: NDArray[Any], *, window: int, seed: int, number: int) -> None:
        shards = np.asarray(shard_of)[indices]
        by_shard = np.argsort(shards, kind="stable")
        self.size = len(indices)
        self._indices = indices[by_shard]
        _, self._shard_sizes = np.unique(shards, return_counts=True)
        self._shard_starts = np.cumsum(self._shard_sizes) - self._shard_sizes
        self._window, self._seed, self._number = window, seed, number
        # A step touches one or two windows of a stream; a few more are kept for steps made side by side.
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._members = functools.lru_cache(maxsize=4)(self._make_members)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_epoch", "_members")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._members = functools.lru_cache(maxsize=4)(self._make_members)

    def samples_at(self, count: Integers) -> Integers:
        """Samples at these counts of the stream's own sequence: global indices of the same shape."""
        epochs, offsets = np.divmod(count, self.size)
        samples = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            _, window_starts = self._epoch(int(epoch))
            in_epoch = epochs == epoch
            windows = np.searchsorted(window_starts, offsets, side="right") - 1
            for window in np.unique(windows[in_epoch]):
                chosen = in_epoch & (windows == window)
                samples[chosen] = self._members(int(epoch), int(window))[offsets[chosen] - window_starts[window]]
        return samples

    def _make_epoch(self, epoch: int) -> tuple[Integers, Integers]:
        """The epoch's order of shards, and the offset at which each window of shards starts."""
        order = generator(self._seed, self._number, epoch, _SHARDS).permutation(len(self._shard_sizes))
        sizes = np.add.reduceat(self._shard_sizes[order], np.arange(0, len(order), self._window))
        return order, np.cumsum(sizes) - sizes

    def _make_members(self, epoch: int, window: int) -> Integers:
        """The samples of one window in their shuffled order."""
        order, _ = self._epoch(epoch)
        shards = order[window * self._window : (window + 1) * self._window]
        parts = [np.arange(self._shard_starts[s], self._shard_starts[s] + self._shard_sizes[s]) for s in shards]
        members: Integers = self._indices[np.concatenate(parts)]
        return generator(self._seed, self._number, epoch, _WINDOW, window).permutation(members)
