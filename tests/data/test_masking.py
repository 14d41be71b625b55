"""Shares, word bounds, leaks and overlaps of every kind of corruption."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.config import MaskingConfig
from unimo_ds.data import masking
from unimo_ds.data.draws import Uniforms
from unimo_ds.data.fragments import cut_fragments, fragment_lengths, sequence_to_sequence
from unimo_ds.data.region_masks import mask_regions, overlap
from unimo_ds.data.schema import CLS, SEP
from unimo_ds.utils.seed import mix

MASKING = MaskingConfig()
V = 1000


class Words:
    """A tokenizer's tables: ids below 4 and the last are special, even ids begin a word."""

    mask_id = V - 1
    num_bytes = np.full(V, 3)
    special = np.isin(np.arange(V), [0, 1, 2, 3, V - 1])
    starts_word = np.arange(V) % 2 == 0


VOCABULARY = masking.Vocabulary.of(Words())


def make_tokens(length: int, seed: int, *, continued: float = 0.3) -> np.ndarray:
    random = np.random.default_rng(seed)
    ids = random.integers(2, V // 2 - 2, length) * 2
    return (ids + (random.random(length) < continued)).astype(np.int32)


def draws_of(seed: int) -> Uniforms:
    return Uniforms(mix(seed))


def mask_boxes(boxes: np.ndarray, seed: int, settings: MaskingConfig = MASKING) -> np.ndarray:
    return mask_regions(boxes, np.array([len(boxes)]), np.array([mix(seed)]), masking=settings)


@given(length=st.integers(0, 200), seed=st.integers(0, 10**6), continued=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
@settings(max_examples=80)
def test_masked_tokens_are_whole_words_and_reach_their_share(length: int, seed: int, continued: float) -> None:
    tokens = make_tokens(length, seed, continued=continued)
    corrupted, chosen = masking.mask_tokens(tokens, vocabulary=VOCABULARY, masking=MASKING, draws=draws_of(seed))
    untouched = np.setdiff1d(np.arange(length), chosen)
    assert (corrupted[untouched] == tokens[untouched]).all()
    assert np.all(np.diff(chosen) > 0)
    bounds = masking.words_of(tokens, VOCABULARY).bounds
    sizes = np.diff(bounds)
    is_chosen = np.isin(np.arange(length), chosen)
    for start, end in itertools.pairwise(bounds):
        assert is_chosen[start:end].all() or not is_chosen[start:end].any()
    wanted = int(np.ceil(0.15 * length - 1e-9))
    assert wanted <= len(chosen) < wanted + max(sizes.max(initial=0), 1)


def test_mean_share_fates_and_replacements() -> None:
    total = masked = kept = replaced = 0
    for seed in range(300):
        tokens = make_tokens(200, seed)
        corrupted, chosen = masking.mask_tokens(tokens, vocabulary=VOCABULARY, masking=MASKING, draws=draws_of(seed))
        total += len(chosen)
        masked += int((corrupted[chosen] == VOCABULARY.mask_id).sum())
        kept += int((corrupted[chosen] == tokens[chosen]).sum())
        changed = corrupted[chosen][corrupted[chosen] != VOCABULARY.mask_id]
        replaced += int((corrupted[chosen] != tokens[chosen]).sum()) - int((corrupted[chosen] == V - 1).sum())
        assert not VOCABULARY.special[changed].any()
    assert 0.15 <= total / (300 * 200) < 0.153
    assert masked / total == pytest.approx(0.8, abs=0.02)
    assert kept / total == pytest.approx(0.1, abs=0.015)
    assert replaced / total == pytest.approx(0.1, abs=0.015)


def test_span_lengths_follow_the_truncated_geometric() -> None:
    numbers = (np.arange(100_000) + 0.5) / 100_000
    lengths = np.array([masking.span_length(number, probability=0.2, longest=10) for number in numbers])
    assert lengths.min() == 0
    assert lengths.max() == 10
    assert lengths.mean() == pytest.approx(2.97, abs=0.03)
    assert np.maximum(lengths, 1).mean() == pytest.approx(3.19, abs=0.03)
    # The spans of a text have these lengths; few fall together.
    _, chosen = masking.mask_tokens(
        make_tokens(20_000, 0, continued=0),
        vocabulary=VOCABULARY,
        masking=MaskingConfig(language_share=0.05),
        draws=draws_of(0),
    )
    num_spans = 1 + int((np.diff(chosen) > 1).sum())
    assert len(chosen) / num_spans == pytest.approx(3.19, abs=0.3)


def test_specials_are_never_masked() -> None:
    tokens = make_tokens(40, 1)
    tokens[[0, 7, 8, 39]] = [CLS, SEP, 3, V - 1]
    for seed in range(50):
        _, chosen = masking.mask_tokens(tokens, vocabulary=VOCABULARY, masking=MASKING, draws=draws_of(seed))
        assert len(chosen) >= 6
        assert not set(chosen.tolist()) & {0, 7, 8, 39}
    only_specials = np.array([CLS, SEP, 3], np.int32)
    corrupted, chosen = masking.mask_tokens(only_specials, vocabulary=VOCABULARY, masking=MASKING, draws=draws_of(0))
    assert len(chosen) == 0
    assert corrupted.tolist() == only_specials.tolist()
    around = np.array([4, SEP, 5, 7], np.int32)  # what continues a word does not continue a special
    words = masking.Words([0, 1, 2, 4], [False, True, False])
    assert masking.words_of(around, VOCABULARY) == masking.words_of(around, VOCABULARY, ((0, 6),)) == words


def test_phrases_join_whole_words() -> None:
    """Words of three bytes each."""
    tokens = make_tokens(10, 1, continued=0)

    def joined(*phrases: tuple[int, int]) -> tuple[list[int], frozenset[int]]:
        words = masking.words_of(tokens, VOCABULARY, phrases)
        return words.bounds, words.phrases

    assert joined((3, 9), (12, 21)) == ([0, 1, 3, 4, 7, 8, 9, 10], {1, 3})
    alone = list(range(11)), frozenset()
    assert joined((3, 6)) == joined((0, 27)) == joined((24, 31)) == alone, "one word, nine tokens, beyond the end"
    assert joined((0, 24)) == ([0, 8, 9, 10], {0})
    assert joined((0, 4), (5, 12)) == joined((0, 6)), "the second one begins inside the first one's last word"


@given(lengths=st.lists(st.integers(0, 510), min_size=1, max_size=12), seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_fragment_lengths_fill_the_budget(lengths: list[int], seed: int) -> None:
    keys = np.arange(len(lengths)) + seed
    text, drawn = fragment_lengths(np.array(lengths), keys, masking=MASKING)
    assert (np.diff(text) >= 0).all()
    for number, length in enumerate(lengths):
        mine = drawn[text == number]
        wanted = int(np.ceil(0.25 * length - 1e-9))
        assert mine.sum() == wanted
        assert (mine >= min(4, wanted)).all()
        assert (mine <= 32).all()
        alone = fragment_lengths(np.array([length]), keys[number : number + 1], masking=MASKING)[1]
        assert alone.tolist() == mine.tolist()


def test_fragment_lengths_are_spread_over_the_limits() -> None:
    _, drawn = fragment_lengths(np.full(4000, 2048), np.arange(4000), masking=MASKING)
    counts = np.bincount(drawn, minlength=33)[4:33] / len(drawn)
    assert counts.min() > 0.6 / 29
    assert counts.max() < 1.4 / 29


@given(length=st.integers(1, 300), seed=st.integers(0, 10**6), continued=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=80)
def test_sequence_to_sequence_moves_whole_words_and_loses_nothing(length: int, seed: int, continued: float) -> None:
    tokens = make_tokens(length, seed, continued=continued)
    bounds = masking.words_of(tokens, VOCABULARY).bounds
    _, sizes = fragment_lengths(np.array([length]), np.array([seed]), masking=MASKING)
    fragments = cut_fragments(bounds, sizes, draws=draws_of(seed))
    assert 1 <= len(fragments) <= len(sizes)
    assert all(start in bounds and end in bounds and start < end for start, end in fragments)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(fragments))
    result = sequence_to_sequence(tokens, fragments)
    inside = np.zeros(length, bool)
    for start, end in fragments:
        inside[start:end] = True
    assert result.token_ids[: result.source_length].tolist() == [CLS, *tokens[~inside].tolist(), SEP]
    assert result.positions[: result.source_length].tolist() == list(range(2, 2 + result.source_length))
    at, predictions = result.source_length, []
    for start, end in fragments:
        fragment = tokens[start:end].tolist()
        stop = at + len(fragment) + 2
        assert result.token_ids[at:stop].tolist() == [CLS, *fragment, SEP]
        assert result.positions[at:stop].tolist() == list(range(2, 2 + len(fragment) + 2))
        predictions += [(at + offset, token) for offset, token in enumerate([*fragment, SEP])]
        at = stop
    assert at == len(result.token_ids) == len(result.positions)
    assert list(zip(result.predicts_at.tolist(), result.targets.tolist(), strict=True)) == predictions


def test_sequence_to_sequence_share_is_a_quarter() -> None:
    taken = 0
    for seed in range(400):
        bounds = masking.words_of(make_tokens(120, seed), VOCABULARY).bounds
        _, sizes = fragment_lengths(np.array([120]), np.array([seed]), masking=MASKING)
        taken += sum(end - start for start, end in cut_fragments(bounds, sizes, draws=draws_of(seed)))
    assert taken / (400 * 120) == pytest.approx(0.25, abs=0.01)


def make_boxes(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)


@given(count=st.integers(1, 60), seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_no_visible_region_overlaps_an_anchor(count: int, seed: int) -> None:
    boxes = make_boxes(count, seed)
    masked = mask_boxes(boxes, seed)
    assert masked.any()
    overlaps = overlap(boxes[:, None], boxes[None])
    alone = mask_boxes(boxes, seed, MaskingConfig(region_overlap=1.0))  # no expansion: the anchors themselves
    assert (alone <= masked).all()
    assert not (overlaps[alone][:, ~masked] > MASKING.region_overlap).any()
    assert ((overlaps[alone] > MASKING.region_overlap).any(axis=0) | alone == masked).all()


def test_anchor_share_is_exact_in_the_mean() -> None:
    apart = np.array([[i / 10, 0, i / 10 + 0.01, 1] for i in range(10)], np.float32)
    masked = [mask_boxes(apart, seed).sum() for seed in range(4000)]
    assert np.mean(masked) / 10 == pytest.approx(0.15, abs=0.003)
    assert mask_boxes(apart[:0], 0).shape == (0,)
    counts = {
        share: {mask_boxes(apart, seed, MaskingConfig(region_share=share)).sum() for seed in range(50)}
        for share in (0, 0.01, 1)
    }
    assert counts == {0: {0}, 0.01: {1}, 1: {10}}


def test_overlap_of_known_boxes() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.5, 0.5, 0.5, 0.5]], np.float32)
    expected = [[1, 0.5, 0.5, 0], [0.5, 1, 1 / 3, 0], [0.5, 1 / 3, 1, 0], [0, 0, 0, 0]]
    assert overlap(boxes[:, None], boxes[None]) == pytest.approx(np.array(expected), abs=1e-6)


def test_an_image_is_masked_alike_in_any_company() -> None:
    images = [make_boxes(count, count) for count in (3, 1, 20, 7)]
    keys = np.array([mix(number) for number in range(4)])
    counts = np.array([len(boxes) for boxes in images])
    together = np.split(mask_regions(np.concatenate(images), counts, keys, masking=MASKING), np.cumsum(counts)[:-1])
    for number, (boxes, masked) in enumerate(zip(images, together, strict=True)):
        assert masked.tolist() == mask_boxes(boxes, number).tolist()


def test_a_script_without_spaces_keeps_most_of_its_context() -> None:
    """One run of 200 tokens in which only the first begins a word is masked in pieces, not whole."""
    tokens = make_tokens(200, 1, continued=1.0)
    _, chosen = masking.mask_tokens(tokens, vocabulary=VOCABULARY, masking=MASKING, draws=draws_of(2))
    assert 30 <= len(chosen) < 30 + masking.LONGEST_WORD
    assert masking.words_of(tokens[: masking.LONGEST_WORD + 1], VOCABULARY).bounds == [0, 8, 9]
    among_words = np.concatenate([make_tokens(3, 1, continued=0), tokens[:8]])
    assert masking.words_of(among_words, VOCABULARY).bounds == [0, 1, 2, 10, 11]
