"""The endless sequence of one source's samples, as a pure function of the position in it.

In each epoch its shards are permuted, neighbours in the permuted order form windows, and the samples of a window are permuted:
reading stays within a few shards at a time.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.draws import Integers, ranges
from unimo_ds.utils.seed import generator

_SHARDS, _WINDOW = 1, 2
"""What is permuted; makes the random keys differ."""


class SourceStream:
    """One source of one kind: its own endless sequence of epochs."""

    def __init__(self, indices: Integers, shard_of: NDArray[Any], *, window: int, seed: int, number: int) -> None:
        """indices: of its samples, ascending. shard_of: [n] of every sample of the corpus, ascending."""
        shards = np.asarray(shard_of)[indices]
        self.size = len(indices)
        self._shard_starts = np.flatnonzero(np.concatenate([[True], shards[1:] != shards[:-1]]))
        self._shard_sizes = np.diff(np.append(self._shard_starts, self.size))
        # Usually a stream's samples in a shard are contiguous: then it is enough to store the first of each shard.
        self._firsts = indices[self._shard_starts]
        lasts = indices[self._shard_starts + self._shard_sizes - 1]
        self._scattered = None if (lasts - self._firsts < self._shard_sizes).all() else indices
        self._window, self._seed, self._number = window, seed, number
        # A step touches one or two windows of a stream; a few more are cached for steps made concurrently.
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._members = functools.lru_cache(maxsize=4)(self._make_members)

    @property
    def members(self) -> Integers:
        """[size] its samples, sorted by shard."""
        return ranges(self._firsts, self._shard_sizes) if self._scattered is None else self._scattered

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_epoch", "_members")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._members = functools.lru_cache(maxsize=4)(self._make_members)

    def samples_of(self, numbers: Integers) -> Integers:
        """`members` at these indices, without making the whole array, which may have millions."""
        if self._scattered is not None:
            return self._scattered[numbers]
        shards = np.searchsorted(self._shard_starts, numbers, side="right") - 1
        samples: Integers = self._firsts[shards] + numbers - self._shard_starts[shards]
        return samples

    def samples_at(self, count: Integers) -> Integers:
        """Samples at these positions of the stream's own sequence: global indices of the same shape."""
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
        sizes = self._shard_sizes[shards]
        if self._scattered is None:
            members = ranges(self._firsts[shards], sizes)
        else:
            members = self._scattered[ranges(self._shard_starts[shards], sizes)]
        return generator(self._seed, self._number, epoch, _WINDOW, window).permutation(members)
