"""Captions say what is so, in words that an independent reader understands."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.prepare.scenes.reading import is_true_of
from unimo_ds.data.prepare.scenes.grammar import make_caption, render, sample_caption, sample_text, sample_wording
from unimo_ds.data.prepare.scenes.model import Scene, Thing, near_duplicate, sample_scene
from unimo_ds.data.prepare.scenes.truth import (
    Description,
    Mention,
    Placement,
    Relation,
    is_false,
    is_true,
)

SCENE = Scene(
    (
        Thing("circle", "red", "small", 1 / 6, 0.52),
        Thing("star", "blue", "large", 5 / 6, 1 / 2),
        Thing("star", "red", "small", 1 / 2, 5 / 6),
    ),
    "sand",
    drawing_seed=0,
)
CIRCLE, BLUE_STAR, RED_STAR = Mention("circle"), Mention("star", "blue"), Mention("star", "red")


@pytest.mark.parametrize(
    "description",
    [
        Description((CIRCLE, BLUE_STAR), (Relation(0, "left of", 1),)),
        Description((BLUE_STAR, CIRCLE), (Relation(0, "right of", 1),)),
        Description((RED_STAR, CIRCLE), (Relation(0, "below", 1), Relation(1, "left of", 0))),
        Description((Mention("star"), CIRCLE), (Relation(0, "below", 1),)),
        Description((Mention("circle", "red", "small"),), placements=(Placement(0, "left"),), ground="sand", count=3),
        Description((RED_STAR,), placements=(Placement(0, "bottom"),)),
        Description((Mention("star"), Mention("star")), (Relation(0, "right of", 1),)),
    ],
)
def test_true_descriptions(description: Description) -> None:
    assert is_true(description, SCENE)
    assert not is_false(description, SCENE)


@pytest.mark.parametrize(
    "description",
    [
        Description((CIRCLE, BLUE_STAR), (Relation(0, "right of", 1),)),
        # Almost at one height, and lower if anything.
        Description((CIRCLE, BLUE_STAR), (Relation(0, "above", 1),)),
        # Both attributes occur, but not on one thing: binding matters.
        Description((Mention("circle", "blue"),)),
        Description((Mention("star", "blue", "small"),)),
        # One star cannot be two things.
        Description((BLUE_STAR, Mention("star", None, "large"))),
        Description((CIRCLE,), ground="snow"),
        Description((CIRCLE,), count=2),
        Description((BLUE_STAR,), placements=(Placement(0, "middle"),)),
        Description((CIRCLE, CIRCLE)),
    ],
)
def test_false_descriptions(description: Description) -> None:
    assert is_false(description, SCENE)
    assert not is_true(description, SCENE)


def test_a_small_difference_may_be_neither_said_nor_denied() -> None:
    things = (Thing("circle", "red", "small", 0.17, 0.46), Thing("star", "blue", "large", 0.83, 0.54))
    slightly_above = Description((CIRCLE, BLUE_STAR), (Relation(0, "above", 1),))
    scene = Scene(things, "sand", 0)
    assert not is_true(slightly_above, scene)
    assert not is_false(slightly_above, scene)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_captions_are_true_readable_and_of_the_promised_length(seed: int) -> None:
    randomness = random.Random(seed)
    scene = sample_scene(randomness)
    caption = sample_caption(scene, randomness)
    assert is_true(caption.description, scene)
    assert is_true_of(caption.text, scene)
    assert 8 <= len(caption.text.split()) <= 25
    assert "  " not in caption.text
    assert caption.text == caption.text.strip().lower()
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption.text)
    assert render(caption.description, caption.wording) == caption.text


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_checker_and_reader_agree_about_captions_of_similar_scenes(seed: int) -> None:
    """Clear truth and clear falsehood are what plain reading says, also where scenes differ in one word."""
    randomness = random.Random(seed)
    scene = sample_scene(randomness)
    other = near_duplicate(scene, randomness)
    caption = sample_caption(other, randomness)
    if is_false(caption.description, scene):
        assert not is_true_of(caption.text, scene)
    elif is_true(caption.description, scene):
        assert is_true_of(caption.text, scene)


def test_one_meaning_has_many_wordings() -> None:
    randomness = random.Random(0)
    description = Description((CIRCLE, BLUE_STAR, RED_STAR), (Relation(0, "left of", 1),), ground="sand")
    texts = {render(description, sample_wording(randomness)) for _ in range(200)}
    assert len(texts) > 60
    assert all(is_true_of(text, SCENE) for text in texts)


def test_one_changed_attribute_changes_one_word_under_one_wording() -> None:
    wording = sample_wording(random.Random(3))
    before = Description((CIRCLE, BLUE_STAR), (Relation(0, "left of", 1),))
    after = replace(before, mentions=(CIRCLE, Mention("star", "green")))
    first, second = (make_caption(one, wording).text.split() for one in (before, after))
    assert [(a, b) for a, b in zip(first, second, strict=True) if a != b] == [("blue", "green")]


def test_texts_of_the_text_only_part_have_one_or_two_sentences() -> None:
    randomness = random.Random(1)
    texts = []
    for _ in range(200):
        scene = sample_scene(randomness)
        texts.append(sample_text(scene, randomness))
        for sentence in re.split(r"\. (?!so )", texts[-1]):
            assert is_true_of(sentence.replace(". so ", " and "), scene)
    assert 0.3 < sum(". " in text for text in texts) / len(texts) < 0.7
    assert max(len(text.split()) for text in texts) <= 45
