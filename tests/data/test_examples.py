"""Examples: targets are what was there, nothing masked leaves a trace, and clean sequences are clean (choice 1)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.data.corpora import FEATURES, MemoryCorpus, WordTokenizer, make_config, make_corpus, make_regions, select
from unimo_ds.config import ContrastConfig, MaskingConfig, RunConfig
from unimo_ds.data.examples import Visit, make_examples, texts_to_encode
from unimo_ds.data.inputs import PreparedSample, image_input, prepare_sample, text_input, text_key
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import (
    CLS,
    JOINT_ROLES,
    SEP,
    Example,
    Kind,
    LanguageObjective,
    Regions,
    Sample,
    SequenceInput,
    SequenceRole,
)
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_selection import Selection
from unimo_ds.data.storage.members import texts_of
from unimo_ds.data.vision import patches

TOKENIZER = WordTokenizer()
VOCABULARY = Vocabulary.of(TOKENIZER)
CORPUS = make_corpus()


def build(
    sample: int,
    position: int,
    config: RunConfig,
    prepared: PreparedSample | None = None,
    selection: Selection | None = None,
    corpus: MemoryCorpus = CORPUS,
) -> tuple[Example, Selection]:
    selection = selection or select(corpus, sample, position, config)
    limit = config.data.max_regions
    prepared = prepared or prepare_sample(corpus.read(sample), max_regions=limit)
    texts = texts_to_encode(prepared, selection)
    related = {
        planned.image: prepare_sample(corpus.read(planned.image), max_regions=limit).image
        for planned in selection.sequences
        if planned.image not in (-1, sample)
    }
    inputs = {text: text_input(TOKENIZER.encode(text), max_text_tokens=config.data.max_text_tokens) for text in texts}
    visit = Visit(selection, prepared, related)
    (example,) = make_examples([visit], text_inputs=inputs, vocabulary=VOCABULARY, config=config)
    return example, selection


def test_inputs_of_image_and_text() -> None:
    regions = make_regions(np.random.default_rng(0), 5)
    image = image_input(regions, max_regions=3)
    assert image.features.shape == (4, FEATURES)
    assert (image.features[1:] == regions.features[:3]).all()
    assert image.features[0] == pytest.approx(regions.features[:3].astype(np.float64).mean(0), rel=2e-3)
    assert image.boxes[0].tolist() == [0, 0, 1, 1, 1]
    x1, y1, x2, y2 = regions.boxes[2].tolist()
    assert image.boxes[3].tolist() == pytest.approx([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], rel=1e-5)
    assert text_input(np.array([7, 8, 9], np.int32), max_text_tokens=4).tolist() == [CLS, 7, 8, SEP]


def test_a_kept_sample_counts_all_that_it_holds() -> None:
    regions = make_regions(np.random.default_rng(0), 20)
    wide = dataclasses.replace(
        regions, class_ids=np.zeros((20, 1000), np.int32), class_probabilities=np.zeros((20, 1000), np.float16)
    )
    few, many = (
        prepare_sample(Sample("", Kind.IMAGE, "", regions=one), max_regions=20).num_bytes for one in (regions, wide)
    )
    assert many - few == 20 * 998 * 6


def test_every_example_matches_its_plan() -> None:
    config = make_config(max_text_tokens=24, max_regions=4)
    for position, sample in enumerate([*range(CORPUS.num_samples)] * 2):
        example, selection = build(sample, position, config)
        assert [s.role for s in example.sequences] == [planned.role for planned in selection.sequences]
        for sequence, planned in zip(example.sequences, selection.sequences, strict=True):
            assert sequence.seed == planned.seed
            assert sequence.level is planned.level
            if planned.role is SequenceRole.CORRUPTED:
                assert sequence.length <= planned.length
            else:
                assert sequence.length == planned.length
        assert (example.position, example.kind, example.key) == (position, selection.kind, CORPUS.key(sample))
        is_pair = selection.kind is Kind.PAIR
        caption = texts_of(CORPUS.samples[sample])[selection.sequences[0].text].text if is_pair else ""
        assert example.text_key == (text_key(caption) if is_pair else 0)
        assert example.image_key == (sample if is_pair else 0)


def test_an_image_is_one_image_as_a_pairs_own_and_as_a_related_one() -> None:
    """So that neither is a negative of a pair that has it as the other."""
    first, second = np.flatnonzero(CORPUS.kinds == Kind.PAIR).tolist()[:2]
    selection = select(CORPUS, first, 0, make_config())
    planned = next(one for one in selection.sequences if one.role is SequenceRole.SINGLE_IMAGE)
    related = planned._replace(role=SequenceRole.RELATED_IMAGE, image=second)
    selection = dataclasses.replace(selection, sequences=(*selection.sequences, related))
    example, _ = build(first, 0, make_config(), selection=selection)
    other, _ = build(second, 1, make_config())
    assert example.sequences[-1].item_key == other.image_key != example.image_key


def assert_clean(sequence: SequenceInput) -> None:
    assert sequence.prefix_length == sequence.length
    assert len(sequence.language_at) == len(sequence.language_targets) == len(sequence.masked_region_at) == 0
    assert sequence.masked_region_features is None
    if sequence.token_ids is not None and sequence.token_positions is not None:
        assert TOKENIZER.mask_id not in sequence.token_ids
        assert sequence.token_ids[0] == CLS
        assert sequence.token_ids[-1] == SEP
        assert sequence.token_positions.tolist() == list(range(2, 2 + len(sequence.token_ids)))
    if sequence.region_features is not None:
        assert (sequence.region_features != 0).all()


def test_clean_sequences_carry_no_corruption() -> None:
    config = make_config(contrast=ContrastConfig(positives=2, word_negatives=2, related_images=2, rewrites="both"))
    seen = set()
    for position, sample in enumerate(np.flatnonzero(CORPUS.kinds == Kind.PAIR).tolist()):
        example, selection = build(sample, position, config)
        stored = prepare_sample(CORPUS.read(sample), max_regions=6)
        for sequence, planned in zip(example.sequences[1:], selection.sequences[1:], strict=True):
            assert_clean(sequence)
            seen.add(sequence.role)
            if planned.text >= 0 and sequence.token_ids is not None:
                assert sequence.token_ids[1:-1].tolist() == TOKENIZER.encode(stored.texts[planned.text]).tolist()[:62]
            if planned.role in (SequenceRole.RELATED_TEXT, SequenceRole.SINGLE_POSITIVE):
                assert sequence.item_key == text_key(stored.texts[planned.text])
            else:
                assert sequence.item_key == (planned.image if planned.role is SequenceRole.RELATED_IMAGE else 0)
            if planned.image == sample:
                assert sequence.region_features is not None
                assert (sequence.region_features[1:] == CORPUS.read(sample).regions.features[:6]).all()
    assert seen == set(SequenceRole) - {SequenceRole.CORRUPTED}


def test_masked_language_targets_are_the_hidden_tokens() -> None:
    config = make_config(masking=MaskingConfig(sequence_to_sequence_share=0.0))
    num_masked = 0
    for position, sample in enumerate(np.flatnonzero(CORPUS.kinds != Kind.IMAGE).tolist()):
        example, selection = build(sample, position, config)
        corrupted = example.sequences[0]
        text = prepare_sample(CORPUS.read(sample), max_regions=6).texts[selection.sequences[0].text]
        original = np.concatenate([[CLS], TOKENIZER.encode(text)[:62], [SEP]])
        at = corrupted.language_at - corrupted.num_regions
        assert corrupted.language_objective is LanguageObjective.MASKED
        assert corrupted.language_targets.tolist() == original[at].tolist()
        assert corrupted.token_ids is not None
        unmasked = np.setdiff1d(np.arange(len(original)), at)
        assert corrupted.token_ids[unmasked].tolist() == original[unmasked].tolist()
        assert corrupted.prefix_length == corrupted.length
        assert len(at) >= 1
        num_masked += int((corrupted.token_ids == TOKENIZER.mask_id).sum())
    assert num_masked > 100


@pytest.mark.parametrize("phrases", [True, False])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_stored_phrases_are_hidden_whole_if_asked(phrases: bool, share: float) -> None:
    """Four words of a token each; the middle two are a phrase, of which the share itself would take one."""
    sample = Sample("a.tar:0", Kind.TEXT, "books", text="aaa bbb ccc ddd", phrases=((4, 11),))
    corpus = MemoryCorpus([sample], TOKENIZER)
    config = make_config(masking=MaskingConfig(sequence_to_sequence_share=share, phrases=phrases))
    of_phrase = TOKENIZER.encode("bbb ccc").tolist()
    taken = set()
    for position in range(60):
        corrupted = build(0, position, config, corpus=corpus)[0].sequences[0]
        taken.add(sum(token in of_phrase for token in corrupted.language_targets.tolist()))
    assert taken == ({0, 2} if phrases else {0, 1})


def test_sequence_to_sequence_prefix_is_image_and_source() -> None:
    config = make_config(masking=MaskingConfig(sequence_to_sequence_share=1.0))
    for position, sample in enumerate(np.flatnonzero(CORPUS.kinds != Kind.IMAGE).tolist()):
        example, _ = build(sample, position, config)
        corrupted = example.sequences[0]
        assert corrupted.token_ids is not None
        assert corrupted.language_objective is LanguageObjective.SEQUENCE_TO_SEQUENCE
        prefix = corrupted.prefix_length - corrupted.num_regions
        assert corrupted.token_ids[0] == corrupted.token_ids[prefix] == CLS
        assert corrupted.token_ids[prefix - 1] == SEP
        assert corrupted.language_at[0] == corrupted.prefix_length
        # Each predicting position's successor in the stream is its target.
        follows = corrupted.token_ids[corrupted.language_at - corrupted.num_regions + 1]
        assert corrupted.language_targets.tolist() == follows.tolist()
        assert corrupted.token_positions is not None
        assert corrupted.token_positions.max() < 66
        assert TOKENIZER.mask_id not in corrupted.token_ids


def test_masked_regions_leave_no_trace() -> None:
    config = make_config()
    for position, sample in enumerate(np.flatnonzero(CORPUS.kinds != Kind.TEXT).tolist()):
        stored = CORPUS.read(sample)
        assert stored.regions is not None
        corrupted = build(sample, position, config)[0].sequences[0]
        rows = corrupted.masked_region_at - 1
        assert len(rows)
        assert corrupted.region_features is not None
        assert corrupted.region_boxes is not None
        assert (corrupted.region_features[corrupted.masked_region_at] == 0).all()
        assert (corrupted.region_boxes[1:, :4] == stored.regions.boxes[:6]).all()
        assert (corrupted.masked_region_features == stored.regions.features[rows]).all()
        assert (corrupted.masked_region_class_ids == stored.regions.class_ids[rows]).all()
        assert (corrupted.masked_region_class_probabilities == stored.regions.class_probabilities[rows]).all()
        # Other features in the masked places, the same input.
        features = stored.regions.features.copy()
        features[rows] += 7
        changed = dataclasses.replace(stored, regions=dataclasses.replace(stored.regions, features=features))
        other = build(sample, position, config, prepare_sample(changed, max_regions=6))[0].sequences[0]
        assert (other.region_features == corrupted.region_features).all()
        assert (other.region_boxes == corrupted.region_boxes).all()
        assert (other.masked_region_features == features[rows]).all()
        visible = np.setdiff1d(np.arange(min(len(features), 6)), rows)
        mean = stored.regions.features[visible].astype(np.float64).mean(0) if len(visible) else np.zeros(FEATURES)
        assert corrupted.region_features[0] == pytest.approx(mean, rel=2e-3)


def test_every_use_of_a_sample_is_masked_anew() -> None:
    pair = int(np.argmax((CORPUS.kinds == Kind.PAIR) * CORPUS.num_regions))
    config = make_config(masking=MaskingConfig(sequence_to_sequence_share=0.0), max_regions=8)
    uses = [build(pair, position, config)[0].sequences[0] for position in range(40)]
    assert len({tuple(one.masked_region_at) for one in uses}) >= 10
    assert len({(one.num_tokens, tuple(one.language_at)) for one in uses}) >= 10


def test_normalised_pixels_change_what_is_predicted_alone() -> None:
    config = make_config()
    changed = dataclasses.replace(config, masking=dataclasses.replace(config.masking, normalised_pixels=True))
    sample = int(np.flatnonzero(CORPUS.kinds == Kind.PAIR)[0])
    plain, normalised = (build(sample, 0, settings)[0].sequences[0] for settings in (config, changed))
    assert plain.masked_region_features is not None
    assert normalised.masked_region_features is not None
    np.testing.assert_array_equal(normalised.masked_region_features, patches.normalised(plain.masked_region_features))
    assert (normalised.masked_region_features != plain.masked_region_features).any()
    for one in dataclasses.fields(SequenceInput):
        if one.name != "masked_region_features":
            np.testing.assert_array_equal(getattr(normalised, one.name), getattr(plain, one.name))


def test_unreadable_related_images_are_left_out() -> None:
    config = make_config()
    related = np.flatnonzero(np.diff(CORPUS.related_image_start) > 0)
    sample = int(related[0])
    selection = select(CORPUS, sample, 0, config)
    prepared = prepare_sample(CORPUS.read(sample), max_regions=6)
    texts = texts_to_encode(prepared, selection)
    images = {s.image: None for s in selection.sequences if s.image not in (-1, sample)}
    assert images
    inputs = {text: text_input(TOKENIZER.encode(text), max_text_tokens=config.data.max_text_tokens) for text in texts}
    visit = Visit(selection, prepared, images)
    (example,) = make_examples([visit], text_inputs=inputs, vocabulary=VOCABULARY, config=config)
    planned = [s.role for s in selection.sequences if s.role is not SequenceRole.RELATED_IMAGE]
    assert [s.role for s in example.sequences] == planned


def test_an_image_without_regions_is_its_global_input() -> None:
    none = make_regions(np.random.default_rng(0), 1)
    empty = Regions(none.boxes[:0], none.features[:0], none.class_ids[:0], none.class_probabilities[:0])
    image = image_input(empty, max_regions=5)
    assert image.features.tolist() == [[0.0] * FEATURES]


def test_shared_images_make_the_same_scores_from_one_encoding_of_the_image() -> None:
    exact = make_config(contrast=ContrastConfig(positives=2, word_negatives=2, related_images=1))
    shared = make_config(
        contrast=ContrastConfig(positives=2, word_negatives=2, related_images=1, joint_encoding="shared_image")
    )
    pairs = [sample for sample in range(CORPUS.num_samples) if CORPUS.kinds[sample] == Kind.PAIR][:8]
    tables = []
    for config in (exact, shared):
        built = [build(sample, position, config) for position, sample in enumerate(pairs)]
        batch = pack([example for example, _ in built])
        # Fragments of sequence-to-sequence targets may fall together, which makes the corrupted sequence shorter.
        assert batch.num_positions <= sum(selection.num_positions for _, selection in built)
        owner = batch.position_sequence[batch.pooled_image_at].long()
        tables.append((batch, [batch.sequence_seeds[owner[row]] for row in batch.contrast.score_image]))
    (plain, _), (packed, image_seeds) = tables
    assert packed.shares_prefixes
    assert not plain.shares_prefixes
    assert packed.contrast.score_role.tolist() == plain.contrast.score_role.tolist()
    assert packed.contrast.score_level.tolist() == plain.contrast.score_level.tolist()
    own = packed.sequence_seeds[packed.position_sequence[packed.pooled_image_at[packed.contrast.pair_image]].long()]
    for role, pair, image_seed in zip(
        packed.contrast.score_role.tolist(), packed.contrast.score_pair.tolist(), image_seeds, strict=True
    ):
        if role in JOINT_ROLES:
            assert image_seed == own[pair], "a joint text is scored against the image that it saw"
    sharing = packed.prefix_of >= 0
    assert int(sharing.sum()) == sum(role in JOINT_ROLES for role in packed.contrast.score_role.tolist())
    owners = packed.prefix_of[sharing].long()
    assert torch.isin(packed.sequence_seeds[owners], own).all()
    saved = sum(int(plain.contrast.score_pair[plain.contrast.score_role == role].numel()) for role in JOINT_ROLES)
    assert plain.num_positions - packed.num_positions >= 2 * saved, "each joint image has [IMG] and a region at least"


def test_the_plan_knows_about_how_many_tokens_will_be_predicted() -> None:
    config = make_config()
    samples = np.flatnonzero(CORPUS.kinds != Kind.IMAGE)
    selection = select_step(CORPUS, samples, np.arange(len(samples)), config)
    made = [len(build(sample, at, config)[0].sequences[0].language_at) for at, sample in enumerate(samples.tolist())]
    assert abs(np.array(made) - selection.predicted).max() <= 4, "whole words, and fragments that fall together"
    assert sum(made) == pytest.approx(selection.predicted.sum(), rel=0.1)
