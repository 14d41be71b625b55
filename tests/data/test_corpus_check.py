"""What a run refuses before it starts (R13), each with its culprit and cure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data.corpora import MemoryCorpus, WordTokenizer, make_config, make_corpus, make_samples
from unimo_ds.config import ContrastConfig, KindWeights, MaskingConfig
from unimo_ds.data.corpus_check import check_corpus, largest_sample, regions_left_out
from unimo_ds.data.schema import Kind
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_plan import order_of
from unimo_ds.utils.errors import UserError

CORPUS = make_corpus()


def test_data_that_fit_are_accepted() -> None:
    check_corpus(CORPUS, make_config())
    sizes = dataclasses.replace(make_config().model, vocabulary_size=0, region_feature_size=0, num_region_classes=0)
    check_corpus(CORPUS, dataclasses.replace(make_config(), model=sizes))


def test_missing_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="holds no samples"):
        check_corpus(MemoryCorpus([], WordTokenizer()), make_config())
    no_pairs = MemoryCorpus([s for s in make_samples() if s.kind is not Kind.PAIR], WordTokenizer())
    with pytest.raises(UserError, match=r"holds no pair; .*contrast\.enabled=false"):
        check_corpus(no_pairs, make_config())
    without = make_config(contrast=ContrastConfig(enabled=False))
    with pytest.raises(UserError, match=r"no pair sample; set data\.kind_weights\.pair=0"):
        check_corpus(no_pairs, without)
    check_corpus(no_pairs, make_config(contrast=ContrastConfig(enabled=False), kind_weights=KindWeights(1, 1, 0)))


def test_texts_alone_need_no_region_sizes() -> None:
    texts = MemoryCorpus([s for s in make_samples() if s.kind is Kind.TEXT], WordTokenizer())
    texts.feature_size = texts.num_region_classes = 0
    check_corpus(texts, make_config(contrast=ContrastConfig(enabled=False), kind_weights=KindWeights(0, 1, 0)))


@pytest.mark.parametrize("name", ["vocabulary_size", "region_feature_size", "num_region_classes"])
def test_sizes_of_another_model_are_refused(name: str) -> None:
    config = make_config()
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, **{name: 777}))
    with pytest.raises(UserError, match=rf"model\.{name}=777 does not fit.*set model\.{name}=\d+"):
        check_corpus(CORPUS, other)


def test_normalised_pixels_are_refused_for_regions_without_pixels() -> None:
    config = make_config(masking=MaskingConfig(normalised_pixels=True))
    with pytest.raises(UserError, match=r"masking\.normalised_pixels=true is for patches of images, but"):
        check_corpus(CORPUS, config)


def test_regions_that_are_not_read_are_told() -> None:
    largest = int(CORPUS.num_regions.max())
    assert regions_left_out(CORPUS, make_config(max_regions=largest)) == []
    (told,) = regions_left_out(CORPUS, make_config(max_regions=largest - 1))
    assert f"up to {largest} regions" in told
    assert f"data.max_regions={largest} reads all" in told
    texts = make_config(max_regions=1, contrast=ContrastConfig(enabled=False), kind_weights=KindWeights(0, 1, 0))
    assert regions_left_out(CORPUS, texts) == [], "images that the run leaves out"


CONTRASTS = (
    ContrastConfig(enabled=False),
    ContrastConfig(rewrites="joint"),
    ContrastConfig(rewrites="joint", joint_encoding="shared_image"),
    ContrastConfig(rewrites="single"),
    ContrastConfig(rewrites="both"),
    ContrastConfig(rewrites="single", related_texts=2, related_images=3),
)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_largest_sample_bounds_every_visit(contrast: ContrastConfig) -> None:
    config = make_config(contrast=dataclasses.replace(contrast, positives=2, phrase_negatives=2))
    longest, positions = largest_sample(CORPUS, config, order_of(CORPUS, config).is_read())
    samples = np.tile(np.arange(CORPUS.num_samples), 30)
    visits = select_step(CORPUS, samples, np.arange(len(samples)), config)
    assert visits.num_positions.max() <= positions
    # Not far off: a bound that refuses everything would be of no use.
    assert visits.num_positions[samples == longest].max() > 0.8 * positions


def test_a_sample_beyond_the_budget_is_refused_before_the_run() -> None:
    config = make_config(micro_batch_tokens=100)
    with pytest.raises(UserError, match=r"sample pair-\d\.tar:\d+ can make up to \d+ stream positions.*raise that"):
        check_corpus(CORPUS, config)
    # Samples that the recipe leaves out do not count.
    texts = make_config(micro_batch_tokens=100, kind_weights=KindWeights(0, 1, 0))
    check_corpus(CORPUS, texts)
