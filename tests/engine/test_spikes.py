"""A spike is seen at its step; an ordinary course and a falling loss are not spikes."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
from collections.abc import Iterable

import pytest

from unimo_ds.config import SpikeConfig
from unimo_ds.engine.spikes import Course
from unimo_ds.engine.state import Best, Progress
from unimo_ds.utils.strict_json import typed

CONFIG = SpikeConfig()


def course_of(values: Iterable[float]) -> tuple[Course, list[float]]:
    """The course after `values`, and those among them that were spikes."""
    course, spikes = Course(), []
    for value in values:
        if course.is_spike(value, CONFIG):
            spikes.append(value)
        course = course.after(value, CONFIG)
    return course, spikes


def test_a_spike_is_seen_at_its_step_and_again_at_the_next() -> None:
    noise = random.Random(0)
    course, spikes = course_of(2.0 + noise.gauss(0, 0.1) for _ in range(300))
    assert spikes == []
    assert course.is_spike(20.0, CONFIG)
    assert "gradient norm 20 where 2" in course.describe("gradient norm", 20.0)
    assert course.is_spike(2.0 + 0.1 * 7, CONFIG)
    assert course.after(20.0, CONFIG) == course, "spikes do not become usual"
    assert not course.is_spike(2.05, CONFIG)


def test_falling_losses_and_warm_up_are_no_spikes() -> None:
    assert course_of(10.0 * math.exp(-step / 80) + 1 for step in range(500))[1] == []
    for seen in (1, CONFIG.warm_up_steps - 1):
        assert course_of([1.0] * seen + [100.0])[1] == []
    assert course_of([1.0] * CONFIG.warm_up_steps + [100.0])[1] == [100.0]


def test_a_course_begins_as_a_plain_average() -> None:
    noise = random.Random(3)
    values = [2.0 + noise.gauss(0, 0.1) for _ in range(40)]
    course, _ = course_of(values)
    assert (course.mean, course.variance) == pytest.approx((statistics.fmean(values), statistics.pvariance(values)))


def test_a_fifth_above_a_smooth_course_is_usual() -> None:
    course, _ = course_of([2.0] * 100)
    assert not course.is_spike(2.0 * 1.19, CONFIG)
    assert course.is_spike(2.0 * 1.21, CONFIG)


def test_ten_times_the_mean_is_a_spike_however_noisy_the_course() -> None:
    noise = random.Random(1)
    course, _ = course_of(abs(noise.gauss(0, 3)) + 0.01 for _ in range(200))
    assert course.is_spike(10 * 2.4 * 1.2, CONFIG)


def test_values_that_are_not_finite_are_another_matter() -> None:
    course, _ = course_of([1.0] * 100)
    for value in (math.nan, math.inf):
        assert not course.is_spike(value, CONFIG)
        assert course.after(value, CONFIG) == course


def test_a_course_continues_from_a_checkpoint_to_the_bit() -> None:
    noise = random.Random(2)
    course, _ = course_of(abs(noise.gauss(3, 1)) for _ in range(77))
    progress = Progress(step=77, best=Best("recall", 0.1, 70), loss_course=course, spikes_in_a_row=2, first_spike=75)
    assert typed(Progress, json.loads(json.dumps(dataclasses.asdict(progress))), where="") == progress
    older = {"step": 5, "skipped_in_a_row": 0, "skipped": 1, "best": None}
    assert typed(Progress, older, where="") == dataclasses.replace(Progress(), step=5, skipped=1)
