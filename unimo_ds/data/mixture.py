"""The global sequence of samples: which sample is at position p, as a pure function of (corpus, weights, seed, p).

Two steps, both O(1) in the position:

1. The position's stream. A stream is one source of one kind; if folders have weights, in one folder. Streams are split off one
   after the other, each by a Beatty sequence: among the first p positions, exactly floor(p * share) belong to the stream.
   So every window of a cycle's length has exactly the stated mix (with one source of each kind, 1 : 1 : 5 is exact in any
   seven neighbours). In other windows, such as a step, each stream before the pairs makes their number vary by at most one.
2. The stream's sample (`source_stream.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import KindWeights
from unimo_ds.data.draws import Integers
from unimo_ds.data.schema import Kind
from unimo_ds.data.source_stream import SourceStream
from unimo_ds.utils.errors import UserError, nearest_name

_LARGEST_DENOMINATOR = 2**31
"""Shares with smaller denominators are exact in 64-bit arithmetic; others are rounded to one in a million, unless that gives 0
or 1."""
_LARGEST_ROUNDED = 10**6

_SOURCE_BITS, _KIND_BITS = 32, 2
"""Of a stream's number, which keys its permutations: source, then kind; the folder is above them."""


@dataclass(frozen=True)
class Share:
    """One stream's part of the sequence."""

    kind: Kind
    folder: int
    """0 if folders have no weights."""
    source: int
    num_samples: int
    share: Fraction


class Order:
    """The endless sequence of samples of one run.

    Attributes:
        mix: its composition, by kind, folder and source.
    """

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
        folder_ids: NDArray[Any] | None = None,
        folder_weights: Mapping[str, float] | None = None,
    ) -> None:
        """Set up the streams.

        kinds, source_ids, shard_of: [n] for every sample of the corpus, in global index order.
        kind_weights: ratio of the kinds; a kind of weight 0 is left out.
        source_weights: weights of sources within their kind, by name; 0 leaves one out. In a kind without any, sources are
        weighted by their numbers of samples.
        window: shards whose samples are shuffled together.
        source_names: name of each source id; required if `source_weights` has any.
        folder_ids: [n] indices into `folder_weights`, the weight of each data folder by name: a kind's samples come in this
        ratio from the folders that have any, and are divided among sources within each; 0 leaves a folder out. None: folders
        are ignored, and a source in several folders is one.

        Raises:
            UserError: a kind, source or folder with weight but without samples, a negative weight, or weights for only some
                sources of a kind.
        """
        weights = dict(source_weights or {})
        _check_source_weights(weights, source_names)
        folder_weights = folder_weights or {"": 1}
        _check_folder_weights(folder_weights)
        self._num_samples = len(kinds)
        self.mix: list[Share] = []
        self._streams: list[SourceStream] = []
        for kind in Kind:
            kind_weight = getattr(kind_weights, kind.name.lower())
            if not kind_weight:
                continue
            members = np.flatnonzero(kinds == kind)
            _check_kind(kind, kind_weight, members)
            found = _by_owner(members, source_ids, folder_ids, num_folders=len(folder_weights))
            if weights:
                _check_whole(weights, [source_names[source] for _, source in found])
            parts = {
                owner: _exact(weights.get(source_names[owner[1]], len(indices)) if weights else len(indices))
                for owner, indices in found.items()
            }
            for (folder, source), share in _shares(kind, parts, list(folder_weights.values())).items():
                indices = found[folder, source]
                number = (folder << _KIND_BITS | int(kind)) << _SOURCE_BITS | source
                self._streams.append(SourceStream(indices, shard_of, window=window, seed=seed, number=number))
                self.mix.append(Share(kind, folder, source, len(indices), _exact(kind_weight) * share))
        if folder_ids is not None:
            _check_used(folder_weights, {one.folder for one in self.mix})
        total = sum((one.share for one in self.mix), Fraction(0))
        self.mix = [dataclasses.replace(one, share=one.share / total) for one in self.mix]
        self._splits = _splits([one.share for one in self.mix])

    def samples_at(self, positions: NDArray[Any]) -> Integers:
        """Global sample indices at `positions` [n] (each >= 0, any order): [n] int64."""
        stream_of, count = self.streams_at(positions)
        samples = np.empty(len(count), np.int64)
        for number in np.unique(stream_of):
            chosen = stream_of == number
            samples[chosen] = self._streams[number].samples_at(count[chosen])
        return samples

    def drawn_like(self, position: int, number: int, random: np.random.Generator) -> Integers:
        """[number] samples drawn from the stream of the position, with replacement."""
        (place,), _ = self.streams_at(np.array([position]))
        stream = self._streams[int(place)]
        return stream.samples_of(random.integers(0, stream.size, number))

    def is_read(self) -> NDArray[np.bool_]:
        """[n] whether each sample is in any stream."""
        result = np.zeros(self._num_samples, np.bool_)
        for stream in self._streams:
            result[stream.members] = True
        return result

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


def _by_owner(
    members: Integers, source_ids: NDArray[Any], folder_ids: NDArray[Any] | None, *, num_folders: int
) -> dict[tuple[int, int], Integers]:
    """The samples of a kind by (folder, source)."""
    found: dict[tuple[int, int], Integers] = {}
    for folder in range(num_folders):
        own = members if folder_ids is None else members[folder_ids[members] == folder]
        sources = source_ids[own]
        for source in np.flatnonzero(np.bincount(sources)).tolist():
            found[folder, source] = own[sources == source]
    return found


def _check_source_weights(weights: Mapping[str, float], source_names: Sequence[str]) -> None:
    for name, weight in weights.items():
        if weight > 0 and name not in source_names:
            raise UserError(
                f"data.source_weights.{name}={weight} but the data has no such source; import it with --source {name}, or "
                f"set data.source_weights.{name}=0 (data.source_weights=none drops all){nearest_name(name, source_names)}"
            )
        if weight < 0:
            raise UserError(f"data.source_weights.{name}={weight} must be at least 0")


def _check_folder_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if weight < 0:
            raise UserError(f"data.folder_weights has {weight:g} for {name}; it must be at least 0")


def _check_kind(kind: Kind, weight: float, members: Integers) -> None:
    if not len(members):
        name = kind.name.lower()
        raise UserError(
            f"data.kind_weights.{name}={weight} but the data holds no {name} sample; "
            f"set data.kind_weights.{name}=0 or add {name} shards"
        )


def _check_whole(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """names: of the sources of one kind. Compared with weights near 1, a number of samples would dominate."""
    weighed = [name for name in names if weights.get(name)]
    forgotten = [name for name in dict.fromkeys(names) if name not in weights]
    if weighed and forgotten:
        raise UserError(
            f"data.source_weights has {weighed[0]}={weights[weighed[0]]} but nothing for {', '.join(forgotten)}; set "
            f"data.source_weights.{forgotten[0]} too (0 leaves it out), or data.source_weights=none to go by sizes"
        )


def _check_used(folder_weights: Mapping[str, float], read: Container[int]) -> None:
    for folder, (name, weight) in enumerate(folder_weights.items()):
        if weight and folder not in read:
            raise UserError(
                f"data.folder_weights has {weight:g} for {name}, which holds no sample of a kind and source that is read; "
                "give it 0, or its kinds and sources a weight"
            )


def _shares(
    kind: Kind, parts: Mapping[tuple[int, int], Fraction], folder_weights: Sequence[float]
) -> dict[tuple[int, int], Fraction]:
    """Shares of the kind's samples by (folder, source), like `parts`, the weights within folders; zero shares are left out."""
    totals: dict[int, Fraction] = {}
    for (folder, _), part in parts.items():
        totals[folder] = totals.get(folder, Fraction(0)) + part
    if not any(totals.values()):
        raise UserError(f"every source of {kind.name.lower()} samples has data.source_weights 0; give one a weight")
    of_folder = {folder: _exact(folder_weights[folder]) for folder, total in totals.items() if total}
    whole = sum(of_folder.values(), Fraction(0))
    if not whole:
        raise UserError(
            f"every folder that has {kind.name.lower()} samples has data.folder_weights 0; give one a weight"
        )
    return {
        (folder, source): of_folder[folder] / whole * part / totals[folder]
        for (folder, source), part in parts.items()
        if part and of_folder[folder]
    }


@dataclass(frozen=True)
class _Split:
    """One stream's exact share of what earlier streams left."""

    numerator: int
    denominator: int

    def count_before(self, positions: Integers) -> Integers:
        """How many of the positions before each of these belong to the stream: floor(p * share), without overflow."""
        if self.denominator >= _LARGEST_DENOMINATOR:
            return np.array([p * self.numerator // self.denominator for p in positions.tolist()], np.int64)
        cycles, rest = np.divmod(positions, self.denominator)
        result: Integers = cycles * self.numerator + rest * self.numerator // self.denominator
        return result


def _splits(shares: list[Fraction]) -> list[_Split]:
    splits, left = [], sum(shares, Fraction(0))
    for share in shares:
        part = share / left
        if part.denominator >= _LARGEST_DENOMINATOR and min(part, 1 - part) * _LARGEST_ROUNDED >= 1:
            part = part.limit_denominator(_LARGEST_ROUNDED)
        splits.append(_Split(part.numerator, part.denominator))
        left -= share
    return splits


def _exact(number: float) -> Fraction:
    """The fraction that was meant: 0.1 is one tenth, not the nearest binary number."""
    return Fraction(number) if isinstance(number, int | np.integer) else Fraction(repr(float(number)))
