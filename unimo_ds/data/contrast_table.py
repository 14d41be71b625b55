"""Which images and texts of a micro-batch are scored against each other.

Letters: S sequences, P pairs, Q private scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.draws import Integers
from unimo_ds.data.schema import ContrastTable, Example, Kind, SequenceRole


def contrast_table(
    examples: Sequence[Example], groups: Integers, has_image: NDArray[np.bool_], has_text: NDArray[np.bool_]
) -> ContrastTable:
    """The pairs among `examples`, those with clean sequences, and one score for each of these sequences; but a pair's two single
    encodings make one together, with role SINGLE_IMAGE.

    groups: contrastive group of each example. has_image, has_text: [S] whether a sequence's [IMG] and [CLS] are pooled; images
    and texts are numbered in that order.

    Raises:
        ValueError: a pair without one of its single encodings, or with two.
    """
    is_clean = has_image | has_text
    if not is_clean.any():
        return empty_contrast_table()
    sequences = [sequence for example in examples for sequence in example.sequences]
    image_row, text_row = np.cumsum(has_image) - 1, np.cumsum(has_text) - 1
    example_of = np.repeat(np.arange(len(examples)), [len(example.sequences) for example in examples])
    numbers, pair_of_clean = np.unique(example_of[is_clean], return_inverse=True)
    pair_of = np.full(len(sequences), -1)
    pair_of[is_clean] = pair_of_clean
    pairs, roles = [examples[number] for number in numbers], column(sequences, "role")

    def row_of_pairs(wanted: SequenceRole, row: Integers) -> Integers:
        """[P] the pooled row of each pair's only sequence of this role."""
        at = np.flatnonzero(roles == wanted)
        count = np.bincount(pair_of[at], minlength=len(pairs))
        if (count != 1).any():
            culprit = pairs[int(np.flatnonzero(count != 1)[0])]
            kind = Kind(culprit.kind).name.lower()
            raise ValueError(f"{kind} {culprit.key!r} has clean sequences but not exactly one {wanted.name} among them")
        rows = np.empty(len(pairs), np.int64)
        rows[pair_of[at]] = row[at]
        return rows

    pair_image = row_of_pairs(SequenceRole.SINGLE_IMAGE, image_row)
    pair_text = row_of_pairs(SequenceRole.SINGLE_TEXT, text_row)
    scored = is_clean & (roles != SequenceRole.SINGLE_TEXT)
    pair = pair_of[scored]
    columns = {
        "pair_position": column(pairs, "position"),
        "pair_group": groups[numbers],
        "pair_image": pair_image,
        "pair_text": pair_text,
        "pair_image_key": column(pairs, "image_key"),
        "pair_text_key": column(pairs, "text_key"),
        "score_pair": pair,
        # What has no image or no text of its own is scored against the pair's, encoded singly.
        "score_image": np.where(has_image[scored], image_row[scored], pair_image[pair]),
        "score_text": np.where(has_text[scored], text_row[scored], pair_text[pair]),
        "score_role": roles[scored],
        "score_level": column(sequences, "level")[scored],
        "score_key": column(sequences, "item_key")[scored],
    }
    return ContrastTable(
        **{name: torch.from_numpy(np.ascontiguousarray(values, np.int64)) for name, values in columns.items()}
    )


def empty_contrast_table() -> ContrastTable:
    """A table without pairs and scores."""
    return ContrastTable(*(torch.zeros(0, dtype=torch.int64) for _ in dataclasses.fields(ContrastTable)))


def column(items: Sequence[Any], name: str) -> Integers:
    """[n] int64, an attribute of each item."""
    return np.fromiter((getattr(item, name) for item in items), np.int64, len(items))
