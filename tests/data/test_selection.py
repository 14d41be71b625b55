"""What a visit draws: only what belongs to it, each thing once, with true lengths, and alone as in company."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest

from tests.data.corpora import make_config, make_corpus, select
from unimo_ds.config import ContrastConfig
from unimo_ds.data.schema import JOINT_ROLES, Kind, LanguageObjective, Level, SequenceRole, TextRole
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_selection import Selection
from unimo_ds.data.storage.members import texts_of

CORPUS = make_corpus()
PAIRS = np.flatnonzero(CORPUS.kinds == Kind.PAIR)
NO_REWRITES = ContrastConfig(positives=0, sentence_negatives=0, phrase_negatives=0, word_negatives=0)


def by_role(selection: Selection, role: SequenceRole) -> list:
    return [sequence for sequence in selection.sequences if sequence.role is role]


@pytest.mark.parametrize("rewrites", ["joint", "both"])
def test_pairs_draw_from_their_own_caption_and_level(rewrites: Literal["joint", "both"]) -> None:
    contrast = ContrastConfig(
        positives=2,
        sentence_negatives=1,
        phrase_negatives=3,
        word_negatives=2,
        related_images=2,
        related_texts=1,
        rewrites=rewrites,
    )
    config = make_config(contrast=contrast)
    wanted = {Level.SENTENCE: 1, Level.PHRASE: 3, Level.WORD: 2}
    for position, sample in enumerate(PAIRS.tolist()):
        selection = select(CORPUS, sample, position, config)
        stored = CORPUS.samples[sample]
        texts = texts_of(stored)
        assert [s.role for s in selection.sequences] == sorted(s.role for s in selection.sequences)
        (pair,) = by_role(selection, SequenceRole.JOINT_PAIR)
        (corrupted,) = by_role(selection, SequenceRole.CORRUPTED)
        (single_text,) = by_role(selection, SequenceRole.SINGLE_TEXT)
        (single_image,) = by_role(selection, SequenceRole.SINGLE_IMAGE)
        assert corrupted.text == pair.text == single_text.text
        assert texts[pair.text].role is TextRole.TEXT
        assert single_image.text == single_text.image == -1
        assert corrupted.image == pair.image == single_image.image == sample
        caption = stored.captions[texts[pair.text].caption]

        positives = by_role(selection, SequenceRole.JOINT_POSITIVE)
        assert len({p.text for p in positives}) == len(positives) == min(2, len(caption.positives))
        assert {texts[p.text].text for p in positives} <= {rewrite.text for rewrite in caption.positives}
        negatives = by_role(selection, SequenceRole.JOINT_NEGATIVE)
        for level, count in wanted.items():
            mine = [negative for negative in negatives if negative.level is level]
            there = [rewrite.text for rewrite in caption.negatives if rewrite.level is level]
            assert len({n.text for n in mine}) == len(mine) == min(count, len(there))
            assert {texts[n.text].text for n in mine} <= set(there)
        assert all(s.image == sample for s in (*positives, *negatives))
        for joint, single in (
            (SequenceRole.JOINT_POSITIVE, SequenceRole.SINGLE_POSITIVE),
            (SequenceRole.JOINT_NEGATIVE, SequenceRole.SINGLE_NEGATIVE),
        ):
            alone = by_role(selection, single)
            assert [s.text for s in alone] == (
                [s.text for s in by_role(selection, joint)] if rewrites == "both" else []
            )
            assert all(s.image == -1 for s in alone)

        related_texts = by_role(selection, SequenceRole.RELATED_TEXT)
        assert len(related_texts) == min(1, len(stored.related_texts))
        assert all(texts[s.text].role is TextRole.RELATED and s.image == -1 for s in related_texts)
        related_images = by_role(selection, SequenceRole.RELATED_IMAGE)
        assert len({s.image for s in related_images}) == len(related_images) == min(2, len(stored.related_images))
        assert {CORPUS.key(s.image) for s in related_images} <= {
            f"{shard}:{int(shard[6:-4]) * 10 + index:05}" for shard, index in stored.related_images
        }
        assert len({s.seed for s in selection.sequences}) == len(selection.sequences)


@pytest.mark.parametrize("joint_encoding", ["exact", "shared_image"])
def test_lengths_are_those_of_the_stored_things(joint_encoding: Literal["exact", "shared_image"]) -> None:
    contrast = dataclasses.replace(make_config().contrast, joint_encoding=joint_encoding)
    config = make_config(max_text_tokens=20, max_regions=4, contrast=contrast)
    samples = np.arange(CORPUS.num_samples)
    step = select_step(CORPUS, samples, samples + 100, config)
    encoded: list[int] = []
    shared: list[int] = []
    for sample in samples.tolist():
        selection = step[sample]
        for sequence in selection.sequences:
            regions = min(int(CORPUS.num_regions[sequence.image]), 4) + 1 if sequence.image >= 0 else 0
            tokens = 0
            if sequence.text >= 0:
                tokens = min(int(CORPUS.text_tokens[CORPUS.text_start[sample] + sequence.text]), 18) + 2
            extra = 2 * len(selection.fragments) if sequence.role is SequenceRole.CORRUPTED else 0
            assert sequence.length == regions + tokens + extra
            is_joint = sequence.role in JOINT_ROLES
            encoded.append(0 if is_joint else regions)
            shares = is_joint and joint_encoding == "shared_image"
            shared.append(min(int(CORPUS.num_regions[sample]), 4) + 1 if shares else 0)
        assert selection.num_positions == step.num_positions[sample]
    assert step.encoded_images.tolist() == encoded
    assert step.shared_lengths.tolist() == shared


def test_a_visit_alone_is_the_visit_in_any_company() -> None:
    config = make_config()
    samples = np.random.default_rng(0).permutation(CORPUS.num_samples)
    positions = np.arange(len(samples)) + 7000
    step = select_step(CORPUS, samples, positions, config)
    for row, (sample, position) in enumerate(zip(samples.tolist(), positions.tolist(), strict=True)):
        assert select(CORPUS, sample, position, config) == step[row]


def test_visits_differ_by_position_and_seed() -> None:
    config = make_config()
    sample = int(PAIRS[np.argmax(np.diff(CORPUS.text_start)[PAIRS])])
    visits = [select(CORPUS, sample, position, config) for position in range(30)]
    assert len({tuple(s.text for s in visit.sequences) for visit in visits}) > 10
    others = [select(CORPUS, sample, position, dataclasses.replace(config, seed=99)) for position in range(30)]
    seeds = [s.seed for visit in (*visits, *others) for s in visit.sequences]
    assert len(set(seeds)) == len(seeds)
    drawn = [[(s.text, s.image) for s in visit.sequences] for visit in (*visits, *others)]
    assert sum(one == other for one, other in zip(drawn[:30], drawn[30:], strict=True)) < 10


def test_without_contrast_there_is_one_corrupted_sequence_each() -> None:
    config = make_config(contrast=ContrastConfig(enabled=False))
    step = select_step(CORPUS, np.arange(CORPUS.num_samples), np.arange(CORPUS.num_samples), config)
    assert step.roles.tolist() == [SequenceRole.CORRUPTED] * CORPUS.num_samples


def test_single_kinds_have_one_sequence_and_objectives_alternate() -> None:
    config = make_config()
    samples = np.tile(np.flatnonzero(CORPUS.kinds == Kind.TEXT), 20)
    step = select_step(CORPUS, samples, np.arange(len(samples)), config)
    assert step.roles.tolist() == [SequenceRole.CORRUPTED] * len(samples)
    generative = step.objectives == LanguageObjective.SEQUENCE_TO_SEQUENCE
    assert generative.mean() == pytest.approx(0.5, abs=0.07)
    assert ((np.diff(step.fragment_starts) > 0) == generative).all()
    images = np.flatnonzero(CORPUS.kinds == Kind.IMAGE)
    step = select_step(CORPUS, images, images, config)
    assert (step.texts == -1).all()
    assert (step.images == images).all()
    assert (step.objectives == LanguageObjective.MASKED).all()


def test_an_empty_step_is_empty() -> None:
    nothing = np.zeros(0, np.int64)
    step = select_step(CORPUS, nothing, nothing, make_config())
    assert len(step) == len(step.num_positions) == len(step.roles) == 0


@pytest.mark.parametrize(
    ("contrast", "roles"),
    [
        (ContrastConfig(rewrites="single"), "SINGLE_IMAGE SINGLE_TEXT SINGLE_POSITIVE SINGLE_NEGATIVE"),
        (NO_REWRITES, "SINGLE_IMAGE SINGLE_TEXT"),
        (dataclasses.replace(NO_REWRITES, form="one_log"), "JOINT_PAIR SINGLE_IMAGE SINGLE_TEXT"),
    ],
)
def test_pairs_are_encoded_jointly_only_where_it_counts(contrast: ContrastConfig, roles: str) -> None:
    config = make_config(contrast=dataclasses.replace(contrast, related_images=0, related_texts=0))
    selections = select_step(CORPUS, PAIRS, np.arange(len(PAIRS)), config)
    assert {SequenceRole(role).name for role in selections.roles} == {"CORRUPTED", *roles.split()}
