"""Splits a training micro-batch into its sequences, to show them: the inverse of `packing.pack`.

Everything is read from the batch itself, so what is shown is what the model gets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.draws import Integers
from unimo_ds.data.schema import LanguageObjective, Level, PackedBatch, SequenceRole

_KNOWN_BY_IMAGE = (SequenceRole.SINGLE_IMAGE, SequenceRole.RELATED_IMAGE)
"""A score with one of these roles belongs to the sequence of its image vector, any other to that of its text vector."""


@dataclass(frozen=True)
class UnpackedSequence:
    """One sequence of a micro-batch; offsets count from its first position, image before text."""

    example: int
    """Index of its sample in the batch (`PackedBatch.keys`)."""
    role: SequenceRole
    level: Level
    objective: LanguageObjective | None
    """None if it predicts no token."""
    related_image: int
    """RELATED_IMAGE: number of the sample shown; else 0."""
    seed: int
    length: int
    prefix_length: int
    prefix_of: int
    """The sequence of the batch whose prefix it sees; -1: none."""
    image_rows: Integers
    """[R] rows of `PackedBatch.region_features`, the first being [IMG]."""
    masked_regions: frozenset[int]
    """Their offsets."""
    token_ids: Integers
    """[n]"""
    targets: dict[int, int]
    """Index in `token_ids` -> token to predict there."""


def unpack(batch: PackedBatch) -> list[UnpackedSequence]:
    """The sequences of a batch that `packing.pack` made, in order."""
    roles, levels, items = _roles(batch)
    starts = batch.sequence_starts.tolist()
    images, tokens = _Parts(batch, batch.region_at), _Parts(batch, batch.token_at)
    language, masked = _Parts(batch, batch.language_at), _Parts(batch, batch.masked_region_at)
    rows, ids = batch.region_row.numpy(), batch.token_ids.numpy().astype(np.int64)
    example = -1
    sequences = []
    for number in range(batch.num_sequences):
        role = SequenceRole(int(roles[number]))
        example += role is SequenceRole.CORRUPTED  # every sample's first sequence
        image_rows = rows[images.of(number)]
        predicting = language.of(number)
        first_token = starts[number] + len(image_rows)
        predicts_at = (batch.language_at[predicting] - first_token).tolist()
        objectives = batch.language_objectives[predicting].tolist()
        sequences.append(
            UnpackedSequence(
                example=example,
                role=role,
                level=Level(int(levels[number])),
                objective=LanguageObjective(objectives[0]) if objectives else None,
                related_image=int(items[number]) if role is SequenceRole.RELATED_IMAGE else 0,
                seed=int(batch.sequence_seeds[number]),
                length=starts[number + 1] - starts[number],
                prefix_length=int(batch.prefix_lengths[number]),
                prefix_of=int(batch.prefix_of[number]),
                image_rows=image_rows,
                masked_regions=frozenset((batch.masked_region_at[masked.of(number)] - starts[number]).tolist()),
                token_ids=ids[tokens.of(number)],
                targets=dict(zip(predicts_at, batch.language_targets[predicting].tolist(), strict=True)),
            )
        )
    return sequences


def _roles(batch: PackedBatch) -> tuple[Integers, Integers, Integers]:
    """[S] role, level and item key of each sequence: for clean ones from their scores, the others are corrupted."""
    roles, levels, items = np.zeros((3, batch.num_sequences), np.int64)
    table = batch.contrast
    sequence_of = batch.position_sequence.numpy().astype(np.int64)
    shows_image, has_text = sequence_of[batch.pooled_image_at.numpy()], sequence_of[batch.pooled_text_at.numpy()]
    role = table.score_role.numpy()
    by_text = ~np.isin(role, _KNOWN_BY_IMAGE)
    scored = np.empty(len(role), np.int64)
    scored[by_text] = has_text[table.score_text.numpy()[by_text]]
    scored[~by_text] = shows_image[table.score_image.numpy()[~by_text]]
    roles[scored], levels[scored], items[scored] = role, table.score_level.numpy(), table.score_key.numpy()
    roles[has_text[table.pair_text.numpy()]] = SequenceRole.SINGLE_TEXT
    return roles, levels, items


class _Parts:
    """For rows at the sorted stream positions `at` [N], which of them belong to each sequence."""

    def __init__(self, batch: PackedBatch, at: Any) -> None:
        sequences: NDArray[Any] = batch.position_sequence.numpy()[at.numpy()]
        self._bounds = np.searchsorted(sequences, np.arange(batch.num_sequences + 1)).tolist()

    def of(self, sequence: int) -> slice:
        return slice(self._bounds[sequence], self._bounds[sequence + 1])


def purpose(sequence: UnpackedSequence) -> str:
    """What a sequence is for, in words."""
    rewrite = {Level.NONE: "rewrite"}.get(sequence.level, f"{sequence.level.name.lower()} rewrite")
    if sequence.role is not SequenceRole.CORRUPTED:
        return {
            SequenceRole.JOINT_PAIR: "pair",
            SequenceRole.JOINT_POSITIVE: "pair with positive rewrite",
            SequenceRole.JOINT_NEGATIVE: f"pair with negative {rewrite}",
            SequenceRole.SINGLE_IMAGE: "image alone",
            SequenceRole.SINGLE_TEXT: "caption alone",
            SequenceRole.RELATED_IMAGE: "related image",
            SequenceRole.RELATED_TEXT: "related text",
            SequenceRole.SINGLE_POSITIVE: "positive rewrite alone",
            SequenceRole.SINGLE_NEGATIVE: f"negative {rewrite} alone",
        }[sequence.role]
    if sequence.objective is LanguageObjective.SEQUENCE_TO_SEQUENCE:
        return "sequence to sequence"
    return "masked" if sequence.objective is not None or sequence.masked_regions else "nothing to predict"


def summary(batch: PackedBatch) -> dict[str, Any]:
    """Counts of a micro-batch's contents, as plain values."""
    sequences = unpack(batch)
    positions: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    for one in sequences:
        numbers[purpose(one)] += 1
        positions[purpose(one)] += one.length
        if one.objective is not None:
            predicted[one.objective.name.lower()] += len(one.targets)
    return {
        "samples": list(batch.keys),
        "positions": batch.num_positions,
        "sequences": len(sequences),
        "longest": batch.longest,
        "padded_positions": len(sequences) * batch.longest,
        "by_purpose": {
            name: {"sequences": number, "positions": positions[name]} for name, number in numbers.most_common()
        },
        "predicted_tokens": dict(predicted),
        "masked_regions": len(batch.masked_region_at),
        "pairs": len(batch.contrast.pair_position),
        "private_scores": len(batch.contrast.score_pair),
    }
