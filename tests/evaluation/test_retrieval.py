"""Ranks against a slow, obvious definition; ties and broken scores count against the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unimo_ds.evaluation import retrieval


def _slow_ranks(scores: np.ndarray, image_of: np.ndarray) -> tuple[list[int], list[int]]:
    """The last place each right answer could take in a sorted list."""
    text_to_image = []
    for caption, own in enumerate(image_of):
        worst_first = sorted(range(scores.shape[1]), key=lambda image: (-scores[caption, image], image == own))
        text_to_image.append(1 + worst_first.index(own))
    image_to_text = []
    for image in range(scores.shape[1]):
        order = sorted(range(len(image_of)), key=lambda row: (-scores[row, image], image_of[row] == image))
        image_to_text.append(1 + next(place for place, row in enumerate(order) if image_of[row] == image))
    return text_to_image, image_to_text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", [4, 1000])
def test_ranks_equal_the_slow_definition(seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(7), rng.integers(1, 4, 7))
    scores = (rng.integers(0, values, (len(image_of), 7)) / values).astype(np.float32)
    text_to_image, image_to_text = _slow_ranks(scores, image_of)
    assert retrieval.text_to_image_ranks(scores, image_of).tolist() == text_to_image
    # Several own captions may share the best score; only other images' captions stand before them.
    assert retrieval.image_to_text_ranks(scores, image_of).tolist() == image_to_text


def test_a_constant_score_and_a_broken_score_have_no_recall() -> None:
    image_of = np.repeat(np.arange(20), 2)
    for value in (0.5, np.nan):
        result = retrieval.from_scores(np.full((40, 20), value, np.float32), image_of)
        assert result.mean_recall == 0.0
        assert result.text_to_image_median_rank == 20
        assert result.image_to_text_median_rank == 39


def test_a_perfect_score() -> None:
    image_of = np.array([0, 0, 1, 2, 2, 2])
    scores = np.eye(3, dtype=np.float32)[image_of]
    result = retrieval.from_scores(scores, image_of)
    assert result.mean_recall == 1.0
    assert result.metrics("held_out/retrieval") == {
        "held_out/retrieval/text_to_image/r@1": 1.0,
        "held_out/retrieval/text_to_image/r@5": 1.0,
        "held_out/retrieval/text_to_image/r@10": 1.0,
        "held_out/retrieval/text_to_image/median_rank": 1.0,
        "held_out/retrieval/image_to_text/r@1": 1.0,
        "held_out/retrieval/image_to_text/r@5": 1.0,
        "held_out/retrieval/image_to_text/r@10": 1.0,
        "held_out/retrieval/image_to_text/median_rank": 1.0,
        "held_out/retrieval/mean_recall": 1.0,
    }


def test_an_image_without_a_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="image 1 has no caption"):
        retrieval.image_to_text_ranks(np.zeros((2, 3), np.float32), np.array([0, 2]))


def test_cosines_match_torch_and_forgive_zero_vectors() -> None:
    texts, images = torch.randn(4, 8), torch.randn(3, 8)
    images[1] = 0
    scores = retrieval.cosine_scores(texts, images)
    for caption in range(4):
        for image in range(3):
            expected = torch.nn.functional.cosine_similarity(texts[caption], images[image], dim=0).item()
            assert scores[caption, image] == pytest.approx(expected, abs=1e-6)
    assert retrieval.paired_cosines(texts[:3], images) == pytest.approx(np.diag(scores[:3]), abs=1e-6)


def test_reranking_all_candidates_equals_ranking_by_the_second_score() -> None:
    rng = np.random.default_rng(1)
    image_of = np.repeat(np.arange(6), 2)
    first, second = (rng.random((12, 6)).astype(np.float32) for _ in range(2))
    candidates = retrieval.best_candidates(first, 6)
    ranks = retrieval.reranked(
        retrieval.text_to_image_ranks(first, image_of),
        candidates,
        np.take_along_axis(second, candidates, axis=1),
        candidates == image_of[:, None],
    )
    assert ranks.tolist() == retrieval.text_to_image_ranks(second, image_of).tolist()


def test_reranking_keeps_what_the_first_score_missed() -> None:
    first_ranks = np.array([1, 5, 2])
    candidates = np.array([[3, 1], [0, 2], [4, 2]])
    own = np.array([[True, False], [False, False], [False, True]])
    joint = np.array([[0.1, 0.2], [0.3, 0.1], [0.5, 0.9]], np.float32)
    assert retrieval.reranked(first_ranks, candidates, joint, own).tolist() == [2, 5, 1]
    with pytest.raises(ValueError, match="disagree"):
        retrieval.reranked(first_ranks[:2], candidates, joint, own)
    assert retrieval.best_candidates(np.array([[0.1, 0.9, 0.9]], np.float32), 2).tolist() == [[1, 2]]
