"""Concatenates a micro-batch's sequences into one stream without padding.

Letters: T stream positions, S sequences, F region feature size, K stored classes per region.
All index arithmetic is on whole arrays, since a loader shares its core with training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.contrast_table import column, contrast_table, empty_contrast_table
from unimo_ds.data.draws import Integers, ranges
from unimo_ds.data.schema import JOINT_ROLES, ContrastTable, Example, PackedBatch, SequenceInput, SequenceRole
from unimo_ds.utils import seed

_IMAGE_ROLES = (*JOINT_ROLES, SequenceRole.SINGLE_IMAGE, SequenceRole.RELATED_IMAGE)
_TEXT_ROLES = (
    *JOINT_ROLES,
    SequenceRole.SINGLE_TEXT,
    SequenceRole.RELATED_TEXT,
    SequenceRole.SINGLE_POSITIVE,
    SequenceRole.SINGLE_NEGATIVE,
)


def pack(
    examples: Sequence[Example],
    pair_groups: Sequence[int] | None = None,
    *,
    feature_size: int = 0,
    classes_per_region: int = 0,
) -> PackedBatch:
    """One training micro-batch: the sequences of `examples` in order, and the contrast table of the pairs among them.

    examples: any number, including zero.
    pair_groups: one contrastive group per example (used only for pairs); None puts all pairs into group 0.
    feature_size, classes_per_region: F and K of the data; they give an input without regions its [0, F] and [0, K] shapes.

    [IMG] and [CLS] vectors are pooled only for clean sequences, each if its role uses it.

    Raises:
        ValueError: a sequence without positions, inconsistent arrays, or a pair without one of its single encodings.
    """
    groups = np.zeros(len(examples), np.int64) if pair_groups is None else np.asarray(pair_groups, np.int64)
    if groups.shape != (len(examples),):
        raise ValueError(
            f"pair_groups has shape {groups.shape}; one number for each of {len(examples)} examples is wanted"
        )
    sequences = [sequence for example in examples for sequence in example.sequences]
    roles = column(sequences, "role")
    # A joint sequence that shares the image's prefix has no image of its own.
    has_image = np.isin(roles, _IMAGE_ROLES) & (_shared_prefixes(sequences) < 0)
    has_text = np.isin(roles, _TEXT_ROLES)
    return _stream(
        sequences,
        has_image,
        has_text,
        contrast_table(examples, groups, has_image, has_text),
        keys=tuple(example.key for example in examples),
        feature_size=feature_size,
        classes_per_region=classes_per_region,
    )


def pack_sequences(
    sequences: Sequence[SequenceInput],
    *,
    feature_size: int = 0,
    keys: tuple[str, ...] = (),
) -> PackedBatch:
    """Sequences to encode outside of training: without a contrast table, and with every [IMG] and [CLS] pooled.

    Pooled images are those of the sequences with regions, in order; pooled texts those of the sequences with tokens, in order.
    Arguments and errors as in `pack`.
    """
    has_image = np.fromiter((sequence.region_features is not None for sequence in sequences), bool, len(sequences))
    has_text = np.fromiter((sequence.token_ids is not None for sequence in sequences), bool, len(sequences))
    return _stream(
        sequences,
        has_image,
        has_text,
        empty_contrast_table(),
        keys=keys,
        feature_size=feature_size,
        classes_per_region=0,
    )


def _stream(
    sequences: Sequence[SequenceInput],
    has_image: NDArray[np.bool_],
    has_text: NDArray[np.bool_],
    contrast: ContrastTable,
    *,
    keys: tuple[str, ...],
    feature_size: int,
    classes_per_region: int,
) -> PackedBatch:
    """The stream of `sequences`; pools [IMG] where `has_image` [S] and [CLS] where `has_text` [S]."""
    num_regions = _lengths([sequence.region_features for sequence in sequences])
    num_tokens = _lengths([sequence.token_ids for sequence in sequences])
    lengths = num_regions + num_tokens
    prefix_lengths = column(sequences, "prefix_length")
    prefix_of = _shared_prefixes(sequences)
    _refuse_inconsistent(sequences, has_image, has_text, num_regions, num_tokens, prefix_lengths, prefix_of)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    first = starts[:-1]
    num_positions = int(starts[-1])
    num_language = _lengths([sequence.language_at for sequence in sequences])
    num_masked = _lengths([sequence.masked_region_at for sequence in sequences])

    def joined(name: str, dtype: type[np.generic], *columns: int) -> torch.Tensor:
        return _joined(sequences, name, dtype, columns)

    width = _width(sequences, "region_features", feature_size)
    classes = _width(sequences, "masked_region_class_ids", classes_per_region)
    sequence_seeds = _tensor(column(sequences, "seed"), np.int64)
    position_sequence = _tensor(np.repeat(np.arange(len(sequences)), lengths), np.int32)
    position_offset = _tensor(np.arange(num_positions) - np.repeat(first, lengths), np.int32)
    return PackedBatch(
        sequence_starts=_tensor(starts, np.int32),
        prefix_lengths=_tensor(prefix_lengths, np.int32),
        sequence_seeds=sequence_seeds,
        prefix_of=_tensor(prefix_of, np.int32),
        position_sequence=position_sequence,
        position_offset=position_offset,
        position_keys=seed.position_keys(sequence_seeds, position_sequence, position_offset),
        token_ids=joined("token_ids", np.int32),
        token_at=_tensor(ranges(first + num_regions, num_tokens), np.int64),
        token_positions=joined("token_positions", np.int32),
        **_images(sequences, num_regions, width),
        region_at=_tensor(ranges(first, num_regions), np.int64),
        language_at=joined("language_at", np.int64) + _tensor(np.repeat(first, num_language), np.int64),
        language_targets=joined("language_targets", np.int64),
        language_objectives=_tensor(np.repeat(column(sequences, "language_objective"), num_language), np.int64),
        masked_region_at=joined("masked_region_at", np.int64) + _tensor(np.repeat(first, num_masked), np.int64),
        masked_region_features=joined("masked_region_features", np.float16, width),
        masked_region_class_ids=joined("masked_region_class_ids", np.int64, classes),
        masked_region_class_probabilities=joined("masked_region_class_probabilities", np.float32, classes),
        pooled_image_at=_tensor(first[has_image], np.int64),
        pooled_text_at=_tensor((first + num_regions)[has_text], np.int64),
        contrast=contrast,
        longest=int(lengths.max(initial=0)),
        shares_prefixes=bool((prefix_of >= 0).any()),
        keys=keys,
        token_tags=_joined_tags(sequences),
    )


def _images(sequences: Sequence[SequenceInput], num_regions: Integers, feature_size: int) -> dict[str, Any]:
    """The fields of a `PackedBatch` on its images, each of which is there once."""
    images, first_rows = _distinct_images(sequences, num_regions)
    num_rows = _lengths([image.region_features for image in images])
    return {
        "region_features": _joined(images, "region_features", np.float16, (feature_size,)),
        "region_boxes": _joined(images, "region_boxes", np.float32, (5,)),
        "region_tags": _joined_region_tags(images),
        "region_row": _tensor(ranges(first_rows, num_regions), np.int64),
        "image_starts": _tensor(np.concatenate([np.zeros(1, np.int64), np.cumsum(num_rows)]), np.int32),
        "longest_image": int(num_rows.max(initial=0)),
    }


def _joined_tags(sequences: Sequence[SequenceInput]) -> torch.Tensor:
    """[G, N_text] the tags of all tokens, or [0, 0]."""
    tags = [sequence.token_tags for sequence in sequences if sequence.token_tags is not None]
    return _tensor(np.concatenate(tags, axis=1) if tags else np.zeros((0, 0)), np.int64)


def _joined_region_tags(images: Sequence[SequenceInput]) -> torch.Tensor:
    """[N_rows, G] the tags of all rows. May raise ValueError: images that differ in G."""
    tags = [np.zeros((one.num_regions, 0)) if one.region_tags is None else one.region_tags for one in images]
    return _tensor(np.concatenate(tags) if tags else np.zeros((0, 0)), np.int64)


def _shared_prefixes(sequences: Sequence[SequenceInput]) -> Integers:
    """[S] the sequence whose prefix each one shares; -1: none."""
    distances = column(sequences, "shares_prefix_at")
    return np.where(distances != 0, np.arange(len(sequences)) + distances, -1)


def _distinct_images(sequences: Sequence[SequenceInput], num_regions: Integers) -> tuple[list[SequenceInput], Integers]:
    """The first sequence with each image, and [S] the row where each sequence's image starts among their rows.

    Equal images are recognised because the clean sequences of a pair share their arrays.
    """
    distinct: list[SequenceInput] = []
    row_of: dict[tuple[int, int], int] = {}
    next_row = 0
    rows = np.zeros(len(sequences), np.int64)
    for index, sequence in enumerate(sequences):
        if sequence.region_features is None:
            continue
        identity = id(sequence.region_features), id(sequence.region_boxes)
        if identity not in row_of:
            row_of[identity] = next_row
            distinct.append(sequence)
            next_row += int(num_regions[index])
        rows[index] = row_of[identity]
    return distinct, rows


def _refuse_inconsistent(
    sequences: Sequence[SequenceInput],
    has_image: NDArray[np.bool_],
    has_text: NDArray[np.bool_],
    num_regions: Integers,
    num_tokens: Integers,
    prefix_lengths: Integers,
    prefix_of: Integers,
) -> None:
    lengths = num_regions + num_tokens
    owners = np.clip(prefix_of, 0, max(0, len(sequences) - 1))
    is_wrong_owner = (owners != prefix_of) | (prefix_of[owners] >= 0) if len(sequences) else prefix_of < 0
    claims = (
        ("has no positions", lengths == 0),
        ("has a prefix outside of its length", (prefix_lengths < 0) | (prefix_lengths > lengths)),
        ("shares the prefix of a sequence that is not there or shares one itself", (prefix_of != -1) & is_wrong_owner),
        ("has no [IMG] to pool", has_image & (num_regions == 0)),
        ("has no [CLS] to pool", has_text & (num_tokens == 0)),
    )
    for sentence, wrong in claims:
        if wrong.any():
            index = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"sequence {index} ({sequences[index].role.name}) {sentence}")


def _lengths(arrays: Sequence[Any]) -> Integers:
    return np.fromiter((0 if array is None else len(array) for array in arrays), np.int64, len(arrays))


def _width(sequences: Sequence[SequenceInput], name: str, default: int) -> int:
    for sequence in sequences:
        array = getattr(sequence, name)
        if array is not None:
            return int(array.shape[1])
    return default


def _joined(
    sequences: Sequence[SequenceInput], name: str, dtype: type[np.generic], columns: tuple[int, ...]
) -> torch.Tensor:
    """The named arrays of all sequences concatenated, in `dtype`; [0, *columns] if none has it."""
    arrays = [array for sequence in sequences if (array := getattr(sequence, name)) is not None and len(array)]
    if not arrays:
        return _tensor(np.zeros((0, *columns)), dtype)
    return _tensor(np.concatenate(arrays), dtype)


def _tensor(array: NDArray[Any], dtype: type[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
