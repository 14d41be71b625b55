"""Rewrites: positives are true, negatives are false, and each level changes what it says it changes."""

from __future__ import annotations

import random

import pytest

from tests.data.prepare.scenes.reading import is_true_of
from unimo_ds.data.prepare.scenes.grammar import sample_caption
from unimo_ds.data.prepare.scenes.model import Scene, sample_scene
from unimo_ds.data.prepare.scenes.rewrites import (
    differing_words,
    phrase_negatives,
    positive_rewrites,
    sentence_negatives,
    word_negatives,
)
from unimo_ds.data.schema import Level

NUM_SCENES = 250


@pytest.fixture(scope="module")
def described():
    randomness = random.Random(11)
    scenes = [sample_scene(randomness) for _ in range(NUM_SCENES)]
    return [(scene, sample_caption(scene, randomness)) for scene in scenes]


def test_positives_are_other_true_texts(described) -> None:
    randomness = random.Random(0)
    for scene, caption in described:
        rewrites = positive_rewrites(caption, randomness)
        assert len({caption.text, *(rewrite.text for rewrite in rewrites)}) == 4
        for rewrite in rewrites:
            assert is_true_of(rewrite.text, scene)
            assert rewrite.level is Level.NONE


def test_word_negatives_are_false_and_differ_in_one_word(described) -> None:
    randomness = random.Random(0)
    origins = []
    for scene, caption in described:
        rewrites = word_negatives(caption, scene, randomness)
        assert len(rewrites) == len({rewrite.text for rewrite in rewrites}) == 4
        for rewrite in rewrites:
            assert not is_true_of(rewrite.text, scene)
            assert differing_words(caption.text, rewrite.text) == 1
            assert rewrite.level is Level.WORD
            origins.append(rewrite.origin)
    kinds = {
        "relation": sum(origin in ("left of>right of", "above>below", "below>above") for origin in origins),
        "size": sum(origin in ("small>large", "large>small") for origin in origins),
        "colour": sum(origin.startswith(("red>", "blue>", "green>")) for origin in origins),
        "shape": sum(origin.startswith(("star>", "heart>", "ring>")) for origin in origins),
    }
    assert min(kinds.values()) > len(origins) * 0.04, kinds


def test_phrase_negatives_are_false_and_change_more_than_a_word(described) -> None:
    randomness = random.Random(0)
    swaps = 0
    for scene, caption in described:
        for rewrite in phrase_negatives(caption, scene, randomness):
            assert not is_true_of(rewrite.text, scene)
            assert differing_words(caption.text, rewrite.text) != 0
            assert rewrite.level is Level.PHRASE
            swaps += sorted(rewrite.text.split()) == sorted(caption.text.split())
    # Some hold the same words in another order: only binding and relations tell them from the caption.
    assert swaps > NUM_SCENES / 10


def test_sentence_negatives_are_the_first_candidates_that_are_false(described) -> None:
    (scene, caption), *others = described
    candidates = [(caption, "itself")] + [(other, str(number)) for number, (_, other) in enumerate(others)]
    rewrites = sentence_negatives(caption, scene, candidates)
    assert [rewrite.text for rewrite in rewrites] == [
        other.text for other, _ in candidates[1:] if not is_true_of(other.text, scene)
    ][:3]
    assert all(rewrite.level is Level.SENTENCE for rewrite in rewrites)


def test_a_sentence_that_happens_to_be_true_is_no_negative(described) -> None:
    scene, caption = described[0]
    true_elsewhere = sample_caption(Scene(scene.things, scene.ground, 99), random.Random(5))
    assert sentence_negatives(caption, scene, [(true_elsewhere, "a twin")]) == ()


def test_differing_words_ignores_articles() -> None:
    assert differing_words("a red star, a moon", "an orange star, a moon") == 1
    assert differing_words("a red star", "a red star") == 0
    assert differing_words("a red star", "a small red star") is None
