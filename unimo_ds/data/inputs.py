"""Encoder inputs of stored samples as they are: an image's regions, a text, both in one sequence. Nothing is corrupted."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.masking import Tokens
from unimo_ds.data.schema import (
    CLS,
    FIRST_POSITION,
    NO_TAG,
    NUM_TEXT_SPECIALS,
    SEP,
    Level,
    Regions,
    Sample,
    SequenceInput,
    SequenceRole,
    Spans,
)
from unimo_ds.data.storage.members import texts_of

NOTHING = np.zeros(0, np.int32)


class ImageInput(NamedTuple):
    """Regions as encoder inputs, the global [IMG] input first."""

    features: NDArray[np.float16]
    """[1 + R, F], row 0 the mean of the others."""
    boxes: NDArray[np.float32]
    """[1 + R, 5] x1, y1, x2, y2, area; row 0 the whole image."""
    tags: NDArray[np.int32] | None = None
    """[1 + R, G], row 0 without any; None if the regions have none."""


def image_input(regions: Regions, *, max_regions: int) -> ImageInput:
    """The first `max_regions` regions with [IMG] before them."""
    features, boxes = regions.features[:max_regions], regions.boxes[:max_regions]
    num_regions, feature_size = features.shape
    inputs = np.empty((1 + num_regions, feature_size), np.float16)
    inputs[1:] = features
    inputs[0] = sum_of_rows(inputs[1:]) * np.float32(1 / max(num_regions, 1))
    located = np.empty((1 + num_regions, 5), np.float32)
    located[0] = (0, 0, 1, 1, 1)
    located[1:, :4] = boxes
    located[1:, 4] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if regions.tags is None:
        return ImageInput(inputs, located)
    return ImageInput(inputs, located, np.insert(regions.tags[:max_regions], 0, NO_TAG, axis=0))


def sum_of_rows(features: NDArray[np.float16]) -> NDArray[np.float32]:
    """[F] sum of the rows [R, F], in float32. `features` must be writable memory."""
    # torch converts float16 with vector instructions, three to fifteen times faster than NumPy; NumPy's sum, on one thread in a
    # fixed order, gives the same bits in every process. One image at a time, everything stays in the processor's cache.
    total: NDArray[np.float32] = torch.from_numpy(features).float().numpy().sum(axis=0)
    return total


def text_input(tokens: Tokens, *, max_text_tokens: int) -> Tokens:
    """[CLS] tokens [SEP]; the end of a longer text is cut off."""
    kept = tokens[: max_text_tokens - NUM_TEXT_SPECIALS]
    ids = np.empty(len(kept) + NUM_TEXT_SPECIALS, np.int32)
    ids[0], ids[1:-1], ids[-1] = CLS, kept, SEP
    return ids


def clean_sequence(
    *,
    role: SequenceRole,
    seed: int = 0,
    level: Level = Level.NONE,
    image: ImageInput | None = None,
    text: Tokens | None = None,
    item_key: int = 0,
    shares_prefix_at: int = 0,
) -> SequenceInput:
    """An uncorrupted, bidirectional input.

    image: from `image_input`. text: from `text_input`. At least one is given. item_key: identity among other pairs' candidates.
    """
    length = (0 if image is None else len(image.features)) + (0 if text is None else len(text))
    return SequenceInput(
        role=role,
        seed=seed,
        level=level,
        item_key=item_key,
        region_features=None if image is None else image.features,
        region_boxes=None if image is None else image.boxes,
        region_tags=None if image is None else image.tags,
        token_ids=text,
        token_positions=None if text is None else positions_of(len(text)),
        shares_prefix_at=shares_prefix_at,
        prefix_length=length,
        language_at=NOTHING,
        language_targets=NOTHING,
        masked_region_at=NOTHING,
    )


@functools.lru_cache(maxsize=1024)
def positions_of(length: int) -> Tokens:
    """[length] position ids, read-only."""
    positions = np.arange(FIRST_POSITION, FIRST_POSITION + length, dtype=np.int32)
    positions.setflags(write=False)
    return positions


@dataclass(frozen=True)
class PreparedSample:
    """The part of a sample that is the same in all its uses: a loader may cache it for the next one."""

    key: str
    texts: tuple[str, ...]
    """In canonical order (`members.texts_of`)."""
    image: ImageInput | None
    phrases: Mapping[int, tuple[tuple[int, int], ...]]
    """Number of a text -> its phrases, as byte ranges [start, end); only for texts that have any."""
    regions: Regions | None
    """The same regions as in `image`, for targets."""

    @property
    def num_bytes(self) -> int:
        """Its approximate memory use."""
        held: list[NDArray[Any] | None] = [*(self.image or ())]
        if self.regions is not None:
            held += [self.regions.class_ids, self.regions.class_probabilities]
        arrays = sum(array.nbytes for array in held if array is not None)
        return arrays + sum(map(len, self.texts)) + 100 * len(self.texts) + 1000


def prepare_sample(sample: Sample, *, max_regions: int) -> PreparedSample:
    """Everything about a sample that does not depend on its use."""
    image = regions = None
    if sample.regions is not None:
        image = image_input(sample.regions, max_regions=max_regions)
        regions = Regions(
            boxes=image.boxes[1:, :4],
            features=image.features[1:],
            # Copies: views would keep alive all bytes read for the sample, with its features a second time.
            class_ids=sample.regions.class_ids[:max_regions].copy(),
            class_probabilities=sample.regions.class_probabilities[:max_regions].copy(),
        )
    texts = texts_of(sample)
    phrases = {number: in_bytes(one.text, one.phrases) for number, one in enumerate(texts) if one.phrases}
    return PreparedSample(sample.key, tuple(one.text for one in texts), image, phrases, regions)


def in_bytes(text: str, spans: Spans) -> Spans:
    """Character spans as spans of the text's UTF-8 bytes."""
    if text.isascii():
        return spans
    ends = list(itertools.accumulate((len(character.encode()) for character in text), initial=0))
    return tuple((ends[start], ends[end]) for start, end in spans)


def text_key(text: str) -> int:
    """63-bit hash, equal on all machines."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1
