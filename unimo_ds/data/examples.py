"""From stored samples to encoder inputs: a corrupted sequence for the masked and generative losses, clean ones for CMCL.

Clean sequences never share an array with the corrupted one's tokens or features: the corruption is done on a copy (choice 1
in docs/choices.md; with the same inputs for both, a model could tell a pair from its rewrites by its masks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import MaskingConfig, RunConfig
from unimo_ds.data.draws import Uniforms, mix_many, uniforms_of
from unimo_ds.data.fragments import cut_fragments, sequence_to_sequence
from unimo_ds.data.inputs import (
    NOTHING,
    ImageInput,
    PreparedSample,
    clean_sequence,
    positions_of,
    sum_of_rows,
    text_input,
    text_key,
)
from unimo_ds.data.masking import Tokens, Vocabulary, mask_tokens, words_of
from unimo_ds.data.region_masks import mask_regions
from unimo_ds.data.schema import (
    JOINT_ROLES,
    NUM_TEXT_SPECIALS,
    Example,
    Kind,
    LanguageObjective,
    SequenceInput,
    SequenceRole,
    Spans,
)
from unimo_ds.data.step_selection import Selection
from unimo_ds.data.vision import patches

_TEXT, _IMAGE = 0x74657874, 0x696D6167
"""Make the keys of masking differ from the sequence's dropout key."""


class Visit(NamedTuple):
    """One use of a sample in a step."""

    selection: Selection
    sample: PreparedSample
    related_images: Mapping[int, ImageInput | None]
    """Encoder input of each related image, by global sample index; None if it could not be read, and is left out."""


def make_examples(
    visits: Sequence[Visit], *, text_inputs: Mapping[str, Tokens], vocabulary: Vocabulary, config: RunConfig
) -> list[Example]:
    """The sequences planned in the visits' selections. An example depends only on its own visit.

    text_inputs: `text_input` of every text from `texts_to_encode`.
    """
    planned = [visit.selection.sequences[0] for visit in visits]
    seeds = np.array([one.seed for one in planned], np.int64)
    # Masking 15 % of the tokens takes about one number per four tokens.
    wanted = np.array([one.length // 3 + 8 if one.text >= 0 else 0 for one in planned], np.int64)
    draws = uniforms_of(mix_many(seeds, _TEXT), wanted)
    has_image = [visit.sample.image is not None for visit in visits]
    images = [visit.sample.image for visit in visits if visit.sample.image is not None]
    corrupted_images = iter(corrupt_images(images, mix_many(seeds[has_image], _IMAGE), settings=config.masking))
    examples = []
    for visit, own in zip(visits, draws, strict=True):
        image = next(corrupted_images) if visit.sample.image is not None else None
        corrupted = _corrupted_sequence(visit, image, text_inputs, vocabulary=vocabulary, config=config, draws=own)
        sequences = (corrupted, *_clean_sequences(visit, text_inputs))
        selection, sample = visit.selection, visit.sample
        is_pair = selection.kind is Kind.PAIR
        examples.append(
            Example(
                key=sample.key,
                kind=selection.kind,
                position=selection.position,
                sequences=sequences,
                text_key=text_key(sample.texts[selection.sequences[0].text]) if is_pair else 0,
                image_key=selection.sample if is_pair else 0,
            )
        )
    return examples


def texts_to_encode(sample: PreparedSample, selection: Selection) -> list[str]:
    """The texts that `make_examples` needs."""
    return [sample.texts[planned.text] for planned in selection.sequences if planned.text >= 0]


class CorruptedImage(NamedTuple):
    """An image with some regions masked."""

    features: NDArray[np.float16]
    """[1 + R, F], masked rows zero, row 0 the mean of the visible ones."""
    masked_at: Tokens
    """[r] the masked rows, sorted."""


def corrupt_images(
    images: Sequence[ImageInput], keys: NDArray[np.int64], *, settings: MaskingConfig
) -> list[CorruptedImage]:
    """Each image with regions masked, depending only on its own key (paper 2.2)."""
    if not images:
        return []
    sizes = np.array([len(image.features) - 1 for image in images])
    boxes = np.concatenate([image.boxes[1:, :4] for image in images])
    is_masked = np.split(mask_regions(boxes, sizes, keys, masking=settings), np.cumsum(sizes)[:-1])
    return [_corrupt_image(image.features, own) for image, own in zip(images, is_masked, strict=True)]


def _corrupt_image(features: NDArray[np.float16], is_masked: NDArray[np.bool_]) -> CorruptedImage:
    """features: [1 + R, F] with the global row first. is_masked: [R]"""
    masked_at = (is_masked.nonzero()[0] + 1).astype(np.int32)
    corrupted = features.copy()
    # While the global row is zero too, the sum of all rows is that of the visible regions.
    corrupted[0] = 0
    corrupted[masked_at] = 0
    corrupted[0] = sum_of_rows(corrupted) / np.float32(max(len(is_masked) - len(masked_at), 1))
    return CorruptedImage(corrupted, masked_at)


def _corrupted_sequence(
    visit: Visit,
    image: CorruptedImage | None,
    text_inputs: Mapping[str, Tokens],
    *,
    vocabulary: Vocabulary,
    config: RunConfig,
    draws: Uniforms,
) -> SequenceInput:
    """The input of the masked and generative losses."""
    planned, sample = visit.selection.sequences[0], visit.sample
    text = _NO_TEXT
    if planned.text >= 0:
        tokens = text_inputs[sample.texts[planned.text]][1:-1]
        phrases = sample.phrases.get(planned.text, ()) if config.masking.phrases else ()
        text = _corrupt_text(tokens, phrases, visit.selection, vocabulary, config.masking, draws)
    num_regions = 0 if image is None else len(image.features)
    masked_at = NOTHING if image is None else image.masked_at
    regions, rows = sample.regions, masked_at - 1
    hidden = None if regions is None else regions.features[rows]
    if hidden is not None and config.masking.normalised_pixels:
        hidden = patches.normalised(hidden)
    return SequenceInput(
        role=SequenceRole.CORRUPTED,
        seed=planned.seed,
        region_features=None if image is None else image.features,
        region_boxes=None if sample.image is None else sample.image.boxes,
        region_tags=None if sample.image is None else sample.image.tags,
        token_ids=text.token_ids,
        token_positions=text.positions,
        prefix_length=num_regions + text.prefix_length,
        language_objective=visit.selection.objective,
        language_at=text.at + np.int32(num_regions),
        language_targets=text.targets,
        masked_region_at=masked_at,
        masked_region_features=hidden,
        masked_region_class_ids=None if regions is None else regions.class_ids[rows],
        masked_region_class_probabilities=None if regions is None else regions.class_probabilities[rows],
    )


class _CorruptedText(NamedTuple):
    token_ids: Tokens | None
    positions: Tokens | None
    prefix_length: int
    at: Tokens
    """Offsets from the first token."""
    targets: Tokens


_NO_TEXT = _CorruptedText(None, None, 0, NOTHING, NOTHING)


def _corrupt_text(
    tokens: Tokens,
    phrases: Spans,
    selection: Selection,
    vocabulary: Vocabulary,
    settings: MaskingConfig,
    draws: Uniforms,
) -> _CorruptedText:
    if selection.objective is LanguageObjective.SEQUENCE_TO_SEQUENCE:
        bounds = words_of(tokens, vocabulary, phrases).bounds
        fragments = cut_fragments(bounds, selection.fragments, draws=draws)
        cut = sequence_to_sequence(tokens, fragments)
        return _CorruptedText(cut.token_ids, cut.positions, cut.source_length, cut.predicts_at, cut.targets)
    corrupted, chosen = mask_tokens(tokens, vocabulary=vocabulary, masking=settings, draws=draws, phrases=phrases)
    ids = text_input(corrupted, max_text_tokens=len(tokens) + NUM_TEXT_SPECIALS)
    return _CorruptedText(ids, positions_of(len(ids)), len(ids), chosen + np.int32(1), tokens[chosen])


def _clean_sequences(visit: Visit, text_inputs: Mapping[str, Tokens]) -> Iterator[SequenceInput]:
    selection, sample = visit.selection, visit.sample
    # The singly encoded image, seen by joint sequences without an image of their own. Any sequence left out comes after it.
    own_image = next(
        (at for at, planned in enumerate(selection.sequences) if planned.role is SequenceRole.SINGLE_IMAGE), 0
    )
    for at, planned in enumerate(selection.sequences[1:], start=1):
        image = text = None
        shares_prefix_at = own_image - at if planned.role in JOINT_ROLES and planned.image < 0 else 0
        if planned.image >= 0:
            is_own = planned.image == selection.sample
            image = sample.image if is_own else visit.related_images[planned.image]
            if image is None:
                continue
        if planned.text >= 0:
            text = text_inputs[sample.texts[planned.text]]
        item_key = 0
        if planned.role is SequenceRole.RELATED_IMAGE:
            item_key = planned.image
        elif planned.role in (SequenceRole.RELATED_TEXT, SequenceRole.SINGLE_POSITIVE):
            item_key = text_key(sample.texts[planned.text])
        yield clean_sequence(
            role=planned.role,
            seed=planned.seed,
            level=planned.level,
            image=image,
            text=text,
            item_key=item_key,
            shares_prefix_at=shares_prefix_at,
        )
