"""Draws for each use of a sample: caption, rewrites, related items and objective, and so the length of every sequence.

All of it depends only on the corpus's index and (seed, position), and is made for a whole step before any sample is read: so
every rank knows every sample's cost. Letters: B samples of a step, S sequences of all of them.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import ContrastConfig, RunConfig
from unimo_ds.data.draws import Integers, draw_distinct, mix_many, ranges, uniform
from unimo_ds.data.fragments import fragment_lengths
from unimo_ds.data.schema import JOINT_ROLES, NUM_TEXT_SPECIALS, Kind, LanguageObjective, Level, SequenceRole, TextRole
from unimo_ds.data.step_selection import StepSelection

# Keys of the draws; each is mixed with the run's seed and the position.
_CAPTION, _POSITIVES, _NEGATIVES, _RELATED_TEXTS, _RELATED_IMAGES, _OBJECTIVE = range(6)
_DRAWS = 0x73656C65
"""Makes these keys differ from those of the sequences."""


class CorpusIndex(Protocol):
    """The arrays of `corpus.Corpus` that selection reads; see there."""

    kinds: NDArray[np.uint8]
    num_regions: NDArray[np.int32]
    text_start: NDArray[np.int64]
    text_role: NDArray[np.uint8]
    text_level: NDArray[np.uint8]
    text_caption: NDArray[np.int32]
    text_tokens: NDArray[np.int32]
    related_image_start: NDArray[np.int64]
    related_image_index: NDArray[np.int64]


def select_step(
    corpus: CorpusIndex, samples: NDArray[Any], positions: NDArray[Any], config: RunConfig
) -> StepSelection:
    """What is drawn for each of `samples` [B] at its position [B] in the global sample sequence.

    Pairs get clean sequences if `config.contrast.enabled`; if fewer items are stored than wanted, all are drawn.
    """
    samples, positions = np.asarray(samples, np.int64), np.asarray(positions, np.int64)
    kinds = corpus.kinds[samples].astype(np.int64)
    draws = _Draws(corpus, samples, positions, config.seed)
    captions, caption_numbers = draws.captions()
    seeds = mix_many(config.seed, positions, int(SequenceRole.CORRUPTED), 0)
    has_text = captions >= 0
    num_tokens = np.where(has_text, _text_lengths(corpus, captions, config) - NUM_TEXT_SPECIALS, 0)
    is_generative = has_text & (num_tokens > 0)
    is_generative &= uniform(mix_many(seeds, _DRAWS, _OBJECTIVE)) < config.masking.sequence_to_sequence_share
    fragment_of, fragments = fragment_lengths(np.where(is_generative, num_tokens, 0), seeds, masking=config.masking)

    table = _SequenceTable()
    every = np.arange(len(samples))
    table.add(every, SequenceRole.CORRUPTED, texts=captions, images=np.where(kinds == Kind.TEXT, -1, samples))
    if config.contrast.enabled:
        _add_clean(table, draws, np.flatnonzero(kinds == Kind.PAIR), captions, caption_numbers, config.contrast)
    rows, roles, levels, texts, images = table.sorted()

    image_lengths = _image_lengths(corpus, images, config)
    lengths = _text_lengths(corpus, texts, config) + image_lengths
    shares_image = np.isin(roles, JOINT_ROLES) & (images < 0)
    num_fragments = np.bincount(fragment_of, minlength=len(samples))
    is_corrupted = roles == SequenceRole.CORRUPTED
    lengths[is_corrupted] += NUM_TEXT_SPECIALS * num_fragments[rows[is_corrupted]]
    return StepSelection(
        samples=samples,
        positions=positions,
        kinds=kinds,
        objectives=is_generative.astype(np.int64) * LanguageObjective.SEQUENCE_TO_SEQUENCE,
        predicted=np.where(
            is_generative,
            np.bincount(fragment_of, fragments, minlength=len(samples)) + num_fragments,
            np.ceil(config.masking.language_share * num_tokens),
        ).astype(np.int64),
        fragment_starts=_starts(num_fragments),
        fragment_lengths=fragments,
        sequence_starts=_starts(np.bincount(rows, minlength=len(samples))),
        roles=roles,
        levels=levels,
        texts=np.where(texts >= 0, texts - corpus.text_start[samples[rows]], -1),
        images=images,
        lengths=lengths,
        encoded_images=np.where(np.isin(roles, JOINT_ROLES), 0, image_lengths),
        shared_lengths=_image_lengths(corpus, np.where(shares_image, samples[rows], -1), config),
        seeds=mix_many(config.seed, positions[rows], roles, _ordinals(rows, roles)),
    )


def _add_clean(
    table: _SequenceTable,
    draws: _Draws,
    pairs: Integers,
    captions: Integers,
    caption_numbers: Integers,
    contrast: ContrastConfig,
) -> None:
    """The sequences of the contrastive objective: joint, single and related, all uncorrupted (choice 1 in docs/choices.md)."""
    samples = draws.samples

    def joint_images(rows: Integers) -> Integers | None:
        return samples[rows] if contrast.joint_encoding == "exact" else None

    if contrast.encodes_jointly:
        table.add(pairs, SequenceRole.JOINT_PAIR, texts=captions[pairs], images=joint_images(pairs))
    table.add(pairs, SequenceRole.SINGLE_IMAGE, images=samples[pairs])
    table.add(pairs, SequenceRole.SINGLE_TEXT, texts=captions[pairs])

    def add_rewrites(rows: Integers, texts: Integers, level: Level) -> None:
        if contrast.encodes_jointly:
            joint = SequenceRole.JOINT_NEGATIVE if level else SequenceRole.JOINT_POSITIVE
            table.add(rows, joint, texts=texts, images=joint_images(rows), level=level)
        if contrast.encodes_rewrites_alone:
            single = SequenceRole.SINGLE_NEGATIVE if level else SequenceRole.SINGLE_POSITIVE
            table.add(rows, single, texts=texts, level=level)

    add_rewrites(*draws.rewrites(caption_numbers, Level.NONE, contrast.positives), Level.NONE)
    wanted_by_level = {
        Level.SENTENCE: contrast.sentence_negatives,
        Level.PHRASE: contrast.phrase_negatives,
        Level.WORD: contrast.word_negatives,
    }
    for level, wanted in wanted_by_level.items():
        add_rewrites(*draws.rewrites(caption_numbers, level, wanted), level)
    rows, texts = draws.related_texts(contrast.related_texts)
    table.add(rows, SequenceRole.RELATED_TEXT, texts=texts)
    rows, images = draws.related_images(contrast.related_images)
    table.add(rows, SequenceRole.RELATED_IMAGE, images=images)


class _Draws:
    """The stored texts of a step's samples, flat, and draws among them. Texts are indices into the corpus's text arrays."""

    def __init__(self, corpus: CorpusIndex, samples: Integers, positions: Integers, seed: int) -> None:
        self.corpus, self.samples, self.positions, self.seed = corpus, samples, positions, seed
        first = corpus.text_start[samples]
        counts = corpus.text_start[samples + 1] - first
        self.text = ranges(first, counts)
        self.row = np.repeat(np.arange(len(samples)), counts)
        self.role = corpus.text_role[self.text]
        self.level = corpus.text_level[self.text]
        self.caption = corpus.text_caption[self.text]

    def captions(self) -> tuple[Integers, Integers]:
        """[B] the text (or drawn caption) of each sample, -1 for images; and [B] its caption number."""
        rows, texts = self._draw(self.role == TextRole.TEXT, 1, _CAPTION)
        captions, numbers = np.full(len(self.samples), -1, np.int64), np.full(len(self.samples), -1, np.int64)
        captions[rows] = texts
        numbers[rows] = self.corpus.text_caption[texts]
        return captions, numbers

    def rewrites(self, caption_numbers: Integers, level: Level, wanted: int) -> tuple[Integers, Integers]:
        """Rows and texts of rewrites of the drawn captions: negatives of a level; for NONE, positives."""
        of_caption = self.caption == caption_numbers[self.row]
        if level is Level.NONE:
            return self._draw(of_caption & (self.role == TextRole.POSITIVE), wanted, _POSITIVES)
        is_negative = (self.role == TextRole.NEGATIVE) & (self.level == level)
        return self._draw(of_caption & is_negative, wanted, _NEGATIVES, int(level))

    def related_texts(self, wanted: int) -> tuple[Integers, Integers]:
        """Rows and texts of retrieved sentences."""
        return self._draw(self.role == TextRole.RELATED, wanted, _RELATED_TEXTS)

    def related_images(self, wanted: int) -> tuple[Integers, Integers]:
        """Rows and global sample indices of retrieved images, which only pairs have."""
        starts = self.corpus.related_image_start
        counts = starts[self.samples + 1] - starts[self.samples]
        rows, numbers = draw_distinct(self._keys(_RELATED_IMAGES), counts, wanted)
        return rows, self.corpus.related_image_index[starts[self.samples[rows]] + numbers]

    def _keys(self, *purpose: int) -> Integers:
        return mix_many(self.seed, self.positions, _DRAWS, *purpose)

    def _draw(self, is_candidate: NDArray[np.bool_], wanted: int, *purpose: int) -> tuple[Integers, Integers]:
        candidates = np.flatnonzero(is_candidate)
        counts = np.bincount(self.row[candidates], minlength=len(self.samples))
        rows, numbers = draw_distinct(self._keys(*purpose), counts, wanted)
        return rows, self.text[candidates[(np.cumsum(counts) - counts)[rows] + numbers]]


class _SequenceTable:
    """Planned sequences, in any order."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Integers, Integers, Integers, Integers, Integers]] = []

    def add(
        self,
        rows: Integers,
        role: SequenceRole,
        *,
        texts: Integers | None = None,
        images: Integers | None = None,
        level: Level = Level.NONE,
    ) -> None:
        none = np.full(len(rows), -1, np.int64)
        roles, levels = np.full(len(rows), int(role)), np.full(len(rows), int(level))
        self._blocks.append((rows, roles, levels, none if texts is None else texts, none if images is None else images))

    def sorted(self) -> tuple[Integers, ...]:
        """rows, roles, levels, texts, images, ordered by row, then role, then as added."""
        columns = [np.concatenate(column) for column in zip(*self._blocks, strict=True)]
        order = np.argsort(columns[0] * len(SequenceRole) + columns[1], kind="stable")
        return tuple(column[order] for column in columns)


def _text_lengths(corpus: CorpusIndex, texts: Integers, config: RunConfig) -> Integers:
    """Positions of each text, including specials, longer ones cut; 0 where the text is -1."""
    if not len(corpus.text_tokens):
        return np.zeros(len(texts), np.int64)
    longest = config.data.max_text_tokens - NUM_TEXT_SPECIALS
    lengths = np.minimum(corpus.text_tokens[texts].astype(np.int64), longest) + NUM_TEXT_SPECIALS
    return np.where(texts >= 0, lengths, 0)


def _image_lengths(corpus: CorpusIndex, images: Integers, config: RunConfig) -> Integers:
    """Positions of each image, including [IMG], surplus regions cut; 0 where the image is -1."""
    lengths = np.minimum(corpus.num_regions[images].astype(np.int64), config.data.max_regions) + 1
    return np.where(images >= 0, lengths, 0)


def _ordinals(rows: Integers, roles: Integers) -> Integers:
    """Number of each sequence among those of the same row and role; both inputs are sorted."""
    group = rows * len(SequenceRole) + roles
    is_first = np.ones(len(group), bool)
    is_first[1:] = group[1:] != group[:-1]
    first = np.flatnonzero(is_first)
    result: Integers = np.arange(len(group)) - first[np.cumsum(is_first) - 1]
    return result


def _starts(counts: Integers) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
