"""What attention and dropout need to know about a packed stream: where sequences start, what sees what, and dropout keys.

Letters: T stream positions, S sequences.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from unimo_ds.utils import seed


@dataclass(frozen=True, eq=False)
class Layout:
    """The stream of one micro-batch, without its content. Fields as in `data.schema.PackedBatch`."""

    sequence_starts: torch.Tensor
    """[S + 1] int32, offsets of the sequences in the stream."""
    prefix_lengths: torch.Tensor
    """[S] int32: the first p positions of a sequence see each other and nothing later; position i >= p sees 0..i."""
    position_sequence: torch.Tensor
    """[T] int32, the sequence of each stream position."""
    position_keys: torch.Tensor
    """[T] int32, the part of every dropout key that does not depend on the site."""
    longest: int
    """Length of the longest sequence, on the host."""
    prefix_of: torch.Tensor | None = None
    """[S] int32, the sequence whose prefix a sequence sees before its own positions, -1: none. None if no prefix is shared."""
    tables: dict[str, Any] = field(default_factory=dict, init=False)
    """What ops derive from this layout (index tables, masks), by their own names, shared by all layers."""

    @property
    def num_positions(self) -> int:
        return int(self.position_sequence.shape[0])

    @property
    def num_sequences(self) -> int:
        return int(self.prefix_lengths.shape[0])

    @property
    def device(self) -> torch.device:
        return self.position_sequence.device

    def to(self, device: torch.device) -> Layout:
        """The same stream on another device; what ops derived from it is derived anew there."""
        tensors: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)


def make_layout(
    lengths: list[int],
    *,
    prefix_lengths: list[int] | None = None,
    seeds: list[int] | None = None,
    prefix_of: list[int] | None = None,
) -> Layout:
    """A layout from sequence lengths, for callers without a `PackedBatch`.

    prefix_lengths: default, the whole length of each sequence (bidirectional). seeds: default 0, 1, 2, ...
    prefix_of: for each sequence the one whose prefix it shares, -1: none; by default no prefix is shared.

    Raises:
        ValueError: lists of different lengths, a length below 1, a prefix outside [0, length], or a shared prefix of a sequence
            that does not exist or shares one itself.
    """
    prefixes = lengths if prefix_lengths is None else prefix_lengths
    keys = list(range(len(lengths))) if seeds is None else seeds
    if not len(lengths) == len(prefixes) == len(keys):
        raise ValueError(f"{len(lengths)} lengths, {len(prefixes)} prefix lengths and {len(keys)} seeds do not match")
    for length, prefix in zip(lengths, prefixes, strict=True):
        if length < 1 or not 0 <= prefix <= length:
            raise ValueError(f"a sequence of {length} positions cannot have a prefix of {prefix}")
    for owner in prefix_of or ():
        if not -1 <= owner < len(lengths) or (prefix_of and owner >= 0 and prefix_of[owner] >= 0):
            raise ValueError(f"sequence {owner} has no prefix of its own to share")
    sizes = torch.tensor(lengths, dtype=torch.int64)
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    starts[1:] = sizes.cumsum(0)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    offsets = (torch.arange(len(sequence)) - starts[sequence]).to(torch.int32)
    return Layout(
        sequence_starts=starts,
        prefix_lengths=torch.tensor(prefixes, dtype=torch.int32),
        position_sequence=sequence.to(torch.int32),
        position_keys=seed.position_keys(torch.tensor(keys, dtype=torch.int64), sequence, offsets),
        longest=max(lengths, default=0),
        prefix_of=None if prefix_of is None else torch.tensor(prefix_of, dtype=torch.int32),
    )
