from __future__ import annotations

import numpy as np
import pytest

from unimo_ds.data.schema import Level
from unimo_ds.evaluation import rewrites


def test_shares_by_level_with_ties_against_the_model() -> None:
    true = np.array([0.5, 0.5, 0.5], np.float32)
    negative = np.array([0.4, 0.5, 0.6, 0.1, 0.2, np.nan], np.float32)
    caption_of = np.array([0, 0, 1, 1, 2, 2])
    level = np.array([Level.WORD, Level.WORD, Level.WORD, Level.PHRASE, Level.PHRASE, Level.SENTENCE])
    result = rewrites.accuracies_by_level(true, negative, caption_of, level)
    word = result[Level.WORD]
    assert (word.accuracy, word.num_captions, word.num_rewrites) == (0.0, 2, 3)
    assert word.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert word.pairwise == pytest.approx(1 / 3)
    assert (result[Level.PHRASE].accuracy, result[Level.PHRASE].chance) == (1.0, 0.5)
    assert result[Level.SENTENCE].accuracy == 0.0, "a score that is not a number is not above anything"


def test_random_scores_come_out_at_chance() -> None:
    rng = np.random.default_rng(0)
    caption_of = np.repeat(np.arange(4000), 3)
    result = rewrites.accuracies_by_level(
        rng.random(4000, np.float32), rng.random(12000, np.float32), caption_of, np.full(12000, int(Level.WORD))
    )[Level.WORD]
    assert result.chance == 0.25
    assert result.accuracy == pytest.approx(0.25, abs=0.03)
    assert result.pairwise == pytest.approx(0.5, abs=0.03)


def test_levels_without_rewrites_are_left_out_of_the_metrics() -> None:
    empty = np.zeros(0, np.int64)
    result = rewrites.accuracies_by_level(np.ones(2, np.float32), np.zeros(0, np.float32), empty, empty)
    assert rewrites.metrics(result, "held_out/rewrites/joint") == {}
    one = rewrites.accuracies_by_level(
        np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64), np.array([int(Level.WORD)])
    )
    assert rewrites.metrics(one, "x") == {"x/word": 1.0, "x/word_chance": 0.5}
    two = rewrites.accuracies_by_level(
        np.ones(1, np.float32), np.array([0, 2], np.float32), np.zeros(2, np.int64), np.full(2, int(Level.WORD))
    )
    assert rewrites.metrics(two, "x") == {"x/word": 0.0, "x/word_chance": 1 / 3, "x/word_pairwise": 0.5}
