"""A fine-tuning example and its micro-batch: pre-training's packed stream plus the task's targets.

Letters: S sequences, E examples, K numbers per target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.packing import pack, pack_sequences
from unimo_ds.data.schema import Example, PackedBatch, SequenceInput


@dataclass(frozen=True)
class TaskExample:
    """One example, as used in one step."""

    key: str
    sequences: tuple[SequenceInput, ...]
    """The same number in every example of a task."""
    targets: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """[K] compared with the head's scores: a class, a value, or a score per answer; empty for tasks that write text."""
    pair: Example | None = None
    """Its image and its text as single encodings, if the task contrasts those too (`contrast.py`)."""


@dataclass(frozen=True)
class TaskBatch(PackedBatch):
    """One micro-batch of one rank. Sequences of an example are adjacent."""

    targets: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """[E, K] float32"""
    singles: PackedBatch = field(default_factory=lambda: pack(()))
    """A separate stream: the single encodings of the examples that have a pair. Stays on the host, like `contrast`."""


def pack_examples(examples: Sequence[TaskExample], *, feature_size: int, target_size: int) -> TaskBatch:
    """The examples packed into one stream; there may be none."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    packed = pack_sequences(sequences, feature_size=feature_size, keys=tuple(example.key for example in examples))
    targets = np.zeros((len(examples), target_size), np.float32)
    for row, example in enumerate(examples):
        targets[row] = example.targets
    values = {item.name: getattr(packed, item.name) for item in dataclasses.fields(PackedBatch)}
    singles = pack([example.pair for example in examples if example.pair is not None], feature_size=feature_size)
    return TaskBatch(**values, targets=torch.from_numpy(targets), singles=singles)
