"""Box operations against loops over single boxes in numpy, written from the definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data.vision.detectors import boxes
from unimo_ds.data.vision.detectors.choosing import Choosing, choose
from unimo_ds.data.vision.detectors.pooling import pool_regions
from unimo_ds.utils.errors import UserError


def some_boxes(random: np.random.Generator, number: int, *, size: int = 40, whole: bool = False) -> np.ndarray:
    corners = np.sort(random.uniform(0, size, (number, 2, 2)), axis=1)
    found = corners.reshape(number, 4).astype(np.float32)
    return found.round() if whole else found


def overlap(one: np.ndarray, other: np.ndarray, extra: int) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0]) + extra
    height = min(one[3], other[3]) - max(one[1], other[1]) + extra
    if width <= 0 or height <= 0:
        return 0.0
    area = sum((box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (one, other))
    return width * height / (area - width * height)


def suppressed_by_loops(rows: np.ndarray, scores: np.ndarray, threshold: float, extra: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-scores[i], i)):
        if all(overlap(rows[i], rows[j], extra) <= threshold for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.3, 0.7]))
def test_suppression_is_that_of_loops(seed: int, number: int, extra: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    rows = some_boxes(random, number, whole=True)
    # Few distinct scores make ties common.
    scores = random.integers(0, 6, number).astype(np.float32)
    expected = suppressed_by_loops(rows.astype(np.float64), scores, threshold, extra)
    arguments = torch.from_numpy(rows).double(), torch.from_numpy(scores)
    found = boxes.suppress(*arguments, threshold=threshold, most=number, extra=extra)
    assert found.tolist() == expected
    few = boxes.suppress(*arguments, threshold=threshold, most=3, extra=extra)
    assert few.tolist() == expected[:3]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 6), st.sampled_from([0, 1]))
def test_suppression_of_all_classes_at_once_is_that_of_each(
    seed: int, number: int, num_classes: int, extra: int
) -> None:
    random = np.random.default_rng(seed)
    rows = some_boxes(random, number, whole=True).astype(np.float64)
    scores = random.integers(0, 8, (number, num_classes)).astype(np.float32) / 8
    expected = np.zeros(number, np.float32)
    for c in range(num_classes):
        for i in suppressed_by_loops(rows, scores[:, c], 0.3, extra):
            expected[i] = max(expected[i], scores[i, c])
    found = boxes.best_unsuppressed(torch.from_numpy(rows), torch.from_numpy(scores), threshold=0.3, extra=extra)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_boxes_without_area_overlap_nothing() -> None:
    point = torch.zeros(1, 4)
    assert boxes.overlaps(point, point, extra=0).item() == 0
    assert boxes.overlaps(point, point, extra=1).item() == 1


def test_anchors_are_those_of_the_original() -> None:
    """The table in py-faster-rcnn's generate_anchors.py, for scales 8, 16, 32."""
    expected = [
        [-84, -40, 99, 55],
        [-176, -88, 191, 103],
        [-360, -184, 375, 199],
        [-56, -56, 71, 71],
        [-120, -120, 135, 135],
        [-248, -248, 263, 263],
        [-36, -80, 51, 95],
        [-80, -168, 95, 183],
        [-168, -344, 183, 359],
    ]
    found = boxes.cell_anchors(16, (0.5, 1.0, 2.0), (8, 16, 32))
    assert found.tolist() == expected
    grid = boxes.grid_anchors(found, height=2, width=3, stride=16)
    assert grid.shape == (2 * 3 * 9, 4)
    np.testing.assert_array_equal(grid[(1 * 3 + 2) * 9 + 4].numpy(), np.add(expected[4], [32, 16, 32, 16]))


@pytest.mark.parametrize("extra", [0, 1])
def test_regression_undoes_what_made_its_deltas(extra: int) -> None:
    random = np.random.default_rng(3)
    start, aim = (np.add(some_boxes(random, 50), [0, 0, 1, 1]) for _ in range(2))
    size, aim_size = (rows[:, 2:] - rows[:, :2] + extra for rows in (start, aim))
    shift = (aim[:, :2] + aim_size / 2 - start[:, :2] - size / 2) / size
    deltas = np.concatenate([shift, np.log(aim_size / size)], axis=1)
    found = boxes.regress(torch.from_numpy(start), torch.from_numpy(deltas), extra=extra).numpy()
    # The far corner of a regressed box lies on its edge: with pixels counted in, one beyond its last pixel.
    np.testing.assert_allclose(found, np.add(aim, [0, 0, extra, extra]), atol=1e-9)
    wild = boxes.regress(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 99, 99]]), extra=0)
    assert wild[0, 2] - wild[0, 0] == pytest.approx(62.5)
    cut = boxes.clip(torch.tensor([[-5.0, 3, 90, 41]]), height=40, width=60, extra=extra)
    assert cut.tolist() == [[0, 3, 60 - extra, 40 - extra]]


def pooled_by_loops(features: np.ndarray, rows: np.ndarray, side: int, scale: float) -> np.ndarray:
    """Caffe's layer, bin by bin."""

    def rounded(value: np.float32) -> int:
        return math.floor(value) + (1 if value - np.floor(value) >= 0.5 else 0)

    channels, height, width = features.shape
    pooled = np.zeros((len(rows), channels, side, side), np.float32)
    for r, box in enumerate(rows.astype(np.float32)):
        x1, y1, x2, y2 = (rounded(value * np.float32(scale)) for value in box)
        bin_height = np.float32(max(y2 - y1 + 1, 1)) / np.float32(side)
        bin_width = np.float32(max(x2 - x1 + 1, 1)) / np.float32(side)
        for i in range(side):
            top = min(max(int(np.floor(np.float32(i) * bin_height)) + y1, 0), height)
            bottom = min(max(int(np.ceil(np.float32(i + 1) * bin_height)) + y1, 0), height)
            for j in range(side):
                left = min(max(int(np.floor(np.float32(j) * bin_width)) + x1, 0), width)
                right = min(max(int(np.ceil(np.float32(j + 1) * bin_width)) + x1, 0), width)
                if bottom > top and right > left:
                    pooled[r, :, i, j] = features[:, top:bottom, left:right].max((1, 2))
    return pooled


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 30), st.sampled_from([1, 3, 7, 14]))
def test_pooling_is_that_of_loops(seed: int, height: int, width: int, side: int) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(3, height, width)).astype(np.float32)
    # Some boxes reach beyond the map, and halves of cells test the rounding.
    rows = np.concatenate([some_boxes(random, 20, size=16 * 34), some_boxes(random, 20, size=16 * 34) // 8 * 8])
    found = pool_regions(torch.from_numpy(features), torch.from_numpy(rows), side=side, scale=1 / 16)
    np.testing.assert_array_equal(found.numpy(), pooled_by_loops(features, rows, side, 1 / 16))


def test_boxes_are_chosen_by_confidence_within_bounds() -> None:
    apart = torch.tensor([[10.0 * i, 0, 10.0 * i + 5, 5] for i in range(6)])
    probabilities = torch.zeros(6, 3)
    probabilities[:, 1] = torch.tensor([0.5, 0.1, 0.3, 0.05, 0.2, 0.9])
    probabilities[:, 0] = 1 - probabilities[:, 1]

    def kept(fewest: int, most: int, confidence: float = 0.2) -> list[int]:
        rule = Choosing(confidence=confidence, fewest=fewest, most=most)
        return choose(apart, probabilities, rule, background=0, extra=1).tolist()

    assert kept(1, 6) == [0, 2, 4, 5]
    assert kept(5, 6) == [5, 0, 2, 4, 1]
    assert kept(1, 2) == [5, 0]
    assert kept(1, 6, confidence=0.95) == [5]
    assert kept(10, 20) == [5, 0, 2, 4, 1, 3]


def test_a_box_that_is_suppressed_in_its_best_class_counts_by_another() -> None:
    same = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [50, 50, 60, 60]])
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.5, 0.1], [0.9, 0.05, 0.05]])
    rule = Choosing(confidence=0.25, fewest=1, most=3)
    assert choose(same, probabilities, rule, background=0, extra=1).tolist() == [0]
    second = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.9, 0.05, 0.05]])
    assert choose(same, second, rule, background=0, extra=1).tolist() == [0, 1]


@pytest.mark.parametrize("rule", [Choosing(fewest=0), Choosing(fewest=9, most=8), Choosing(confidence=2)])
def test_rules_that_contradict_themselves_are_refused(rule: Choosing) -> None:
    with pytest.raises(UserError):
        rule.check()
