"""From stored samples to encoder inputs: a corrupted sequence for the masked and generative losses, clean ones for CMCL.

Clean sequences never share an array with the corrupted one's tokens or features: the corrupted copy is made anew (choice 1
in docs/choices.md; the same inputs for both would let a model tell a pair from its rewrites by its masks).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.config import MaskingConfig, RunConfig
from unimo_ds.data import masking
from unimo_ds.data.masking import Tokens, Vocabulary
from unimo_ds.data.members import texts_of
from unimo_ds.data.schema import (
    CLS,
    FIRST_POSITION,
    SEP,
    Example,
    Kind,
    LanguageObjective,
    Level,
    Regions,
    Sample,
    SequenceInput,
    SequenceRole,
)
from unimo_ds.data.selection import NUM_TEXT_SPECIALS, Selection
from unimo_ds.utils.seed import generator

_CORRUPTION = 0x636F7272
"""Keeps the key of masking apart from the sequence's dropout key."""

_NOTHING = np.zeros(0, np.int32)


class ImageInput(NamedTuple):
    """Regions as the encoder takes them, the global [IMG] input first."""

    features: NDArray[np.float16]
    """[1 + R, F], row 0 the mean of the others."""
    boxes: NDArray[np.float32]
    """[1 + R, 5] x1, y1, x2, y2, area; row 0 the whole image."""


def image_input(regions: Regions, *, max_regions: int) -> ImageInput:
    """The first `max_regions` regions with [IMG] before them (unimo.md 2.4)."""
    features, boxes = regions.features[:max_regions], regions.boxes[:max_regions]
    num_regions, feature_size = features.shape
    inputs = np.empty((1 + num_regions, feature_size), np.float16)
    inputs[1:] = features
    inputs[0] = _mean(inputs[1:])
    located = np.empty((1 + num_regions, 5), np.float32)
    located[0] = (0, 0, 1, 1, 1)
    located[1:, :4] = boxes
    located[1:, 4] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return ImageInput(inputs, located)


def _mean(features: NDArray[np.float16]) -> NDArray[np.float16]:
    """Mean of [R, F] over R in float32, zeros where there is nothing to average. `features` must be writable memory."""
    if not len(features):
        return np.zeros(features.shape[1], np.float16)
    # torch converts float16 with vector instructions, three to fifteen times as fast as NumPy; NumPy's sum, on one thread
    # in one order, keeps the bits the same in every process.
    total: NDArray[np.float32] = torch.from_numpy(features).float().numpy().sum(axis=0)
    return (total * np.float32(1 / len(features))).astype(np.float16)


def text_input(tokens: Tokens, *, max_text_tokens: int) -> Tokens:
    """[CLS] tokens [SEP], the end of a longer text cut off."""
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
) -> SequenceInput:
    """An uncorrupted, bidirectional input.

    image: from `image_input`. text: from `text_input`. At least one of them.
    """
    length = (0 if image is None else len(image.features)) + (0 if text is None else len(text))
    return SequenceInput(
        role=role,
        seed=seed,
        level=level,
        region_features=None if image is None else image.features,
        region_boxes=None if image is None else image.boxes,
        token_ids=text,
        token_positions=None if text is None else _positions(len(text)),
        prefix_length=length,
        language_at=_NOTHING,
        language_targets=_NOTHING,
        masked_region_at=_NOTHING,
    )


@functools.lru_cache(maxsize=1024)
def _positions(length: int) -> Tokens:
    positions = np.arange(FIRST_POSITION, FIRST_POSITION + length, dtype=np.int32)
    positions.setflags(write=False)
    return positions


@dataclass(frozen=True)
class PreparedSample:
    """A stored sample as visits use it, whatever they draw: a loader may keep it for the next visit."""

    key: str
    texts: tuple[str, ...]
    """In canonical order (`members.texts_of`)."""
    image: ImageInput | None
    regions: Regions | None
    """Cut to the same regions as `image`, for targets."""

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        arrays = 0 if self.image is None else 2 * self.image.boxes.nbytes + self.image.features.nbytes
        return arrays + sum(map(len, self.texts)) + 100 * len(self.texts) + 1000


def prepare_sample(sample: Sample, *, max_regions: int) -> PreparedSample:
    """Everything about a sample that does not depend on the visit."""
    image = regions = None
    if sample.regions is not None:
        image = image_input(sample.regions, max_regions=max_regions)
        regions = Regions(
            boxes=image.boxes[1:, :4],
            features=image.features[1:],
            class_ids=sample.regions.class_ids[:max_regions],
            class_probabilities=sample.regions.class_probabilities[:max_regions],
        )
    return PreparedSample(sample.key, tuple(text.text for text in texts_of(sample)), image, regions)


def make_example(
    sample: PreparedSample,
    selection: Selection,
    *,
    token_ids: Mapping[str, Tokens],
    related_images: Mapping[int, ImageInput | None],
    vocabulary: Vocabulary,
    config: RunConfig,
) -> Example:
    """The sequences that `selection` plans.

    token_ids: ids without specials of every text that `texts_to_encode` names.
    related_images: encoder input of each related image, by global sample index; None leaves it out (it could not be read).
    """
    longest = config.data.max_text_tokens
    sequences = []
    for planned in selection.sequences:
        tokens = token_ids[sample.texts[planned.text]] if planned.text >= 0 else None
        image = None
        if planned.image >= 0:
            image = sample.image if planned.image == selection.sample else related_images[planned.image]
            if image is None:
                continue
        if planned.role is SequenceRole.CORRUPTED:
            sequence = corrupted_sequence(
                seed=planned.seed,
                image=image,
                regions=sample.regions,
                tokens=None if tokens is None else tokens[: longest - NUM_TEXT_SPECIALS],
                objective=selection.objective,
                fragments=selection.fragments,
                vocabulary=vocabulary,
                settings=config.masking,
            )
        else:
            text = None if tokens is None else text_input(tokens, max_text_tokens=longest)
            sequence = clean_sequence(role=planned.role, seed=planned.seed, level=planned.level, image=image, text=text)
        sequences.append(sequence)
    is_pair = selection.kind is Kind.PAIR
    return Example(
        key=sample.key,
        kind=selection.kind,
        position=selection.position,
        sequences=tuple(sequences),
        text_key=_hash(sample.texts[selection.sequences[0].text]) if is_pair else 0,
        image_key=_hash(sample.key) if is_pair else 0,
    )


def texts_to_encode(sample: PreparedSample, selection: Selection) -> list[str]:
    """The texts that `make_example` will look up."""
    return [sample.texts[planned.text] for planned in selection.sequences if planned.text >= 0]


def corrupted_sequence(
    *,
    seed: int,
    image: ImageInput | None,
    regions: Regions | None,
    tokens: Tokens | None,
    objective: LanguageObjective,
    fragments: Sequence[int],
    vocabulary: Vocabulary,
    settings: MaskingConfig,
) -> SequenceInput:
    """The input of the masked and generative losses; all masking is a function of `seed`.

    image: clean input of the whole image, and regions: the same as stored, for targets; both None for a text.
    tokens: [n] ids without specials, or None for an image. fragments: lengths, for the sequence-to-sequence objective.
    """
    random = generator(seed, _CORRUPTION)
    fields = _corrupt_text(tokens, objective, fragments, vocabulary, settings, random)
    num_regions = 0 if image is None else len(image.features)
    if num_regions and len(fields.at):
        fields = fields._replace(at=fields.at + np.int32(num_regions))
    features, masked_at, rows = None, _NOTHING, _NOTHING
    if image is not None:
        features, masked_at = _corrupt_image(image, settings, random)
        rows = masked_at - 1
    return SequenceInput(
        role=SequenceRole.CORRUPTED,
        seed=seed,
        region_features=features,
        region_boxes=None if image is None else image.boxes,
        token_ids=fields.token_ids,
        token_positions=fields.positions,
        prefix_length=num_regions + fields.prefix_length,
        language_objective=objective,
        language_at=fields.at,
        language_targets=fields.targets,
        masked_region_at=masked_at,
        masked_region_features=None if regions is None else regions.features[rows],
        masked_region_class_ids=None if regions is None else regions.class_ids[rows],
        masked_region_class_probabilities=None if regions is None else regions.class_probabilities[rows],
    )


class _CorruptedText(NamedTuple):
    token_ids: Tokens | None
    positions: Tokens | None
    prefix_length: int
    at: Tokens
    targets: Tokens


def _corrupt_text(
    tokens: Tokens | None,
    objective: LanguageObjective,
    fragments: Sequence[int],
    vocabulary: Vocabulary,
    settings: MaskingConfig,
    random: np.random.Generator,
) -> _CorruptedText:
    if tokens is None:
        return _CorruptedText(None, None, 0, _NOTHING, _NOTHING)
    if objective is LanguageObjective.SEQUENCE_TO_SEQUENCE:
        bounds = masking.word_bounds(tokens, vocabulary)
        cut = masking.sequence_to_sequence(tokens, masking.cut_fragments(bounds, fragments, random=random))
        return _CorruptedText(cut.token_ids, cut.positions, cut.source_length, cut.predicts_at, cut.targets)
    corrupted, chosen = masking.mask_tokens(tokens, vocabulary=vocabulary, masking=settings, random=random)
    ids = text_input(corrupted, max_text_tokens=len(tokens) + NUM_TEXT_SPECIALS)
    return _CorruptedText(ids, _positions(len(ids)), len(ids), chosen + np.int32(1), tokens[chosen])


def _corrupt_image(
    image: ImageInput, settings: MaskingConfig, random: np.random.Generator
) -> tuple[NDArray[np.float16], Tokens]:
    """Features with masked regions zeroed and [IMG] the mean of the others, and the offsets of the masked ones."""
    is_masked = masking.mask_regions(image.boxes[1:, :4], masking=settings, random=random)
    features = image.features.copy()
    features[1:][is_masked] = 0
    features[0] = _mean(image.features[1:][~is_masked])
    return features, np.flatnonzero(is_masked).astype(np.int32) + np.int32(1)


def _hash(text: str) -> int:
    """63-bit hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1
