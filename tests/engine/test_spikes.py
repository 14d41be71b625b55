"""A spike is seen at its step; an ordinary course and a falling loss are not spikes."""

from __future__ import annotations

import math
import random

from unimo_ds.engine.spikes import WARM_UP, SpikeDetector


def test_a_spike_is_seen_at_its_step_and_again_at_the_next() -> None:
    noise, detector = random.Random(0), SpikeDetector("gradient norm")
    assert [detector.add(2.0 + noise.gauss(0, 0.1)) for _ in range(300)] == [None] * 300
    assert "gradient norm 20" in (detector.add(20.0) or "")
    assert detector.add(2.0 + 0.1 * 7) is not None
    assert detector.add(20.0) is not None, "spikes do not become usual"
    assert detector.add(2.05) is None


def test_falling_losses_and_warm_up_are_no_spikes() -> None:
    detector = SpikeDetector("loss")
    assert [detector.add(10.0 * math.exp(-step / 80) + 1) for step in range(500)] == [None] * 500
    assert [SpikeDetector("loss").add(value) for value in (1.0, 100.0)] == [None, None]
    assert WARM_UP > 1


def test_ten_times_the_mean_is_a_spike_however_noisy_the_course() -> None:
    noise, detector = random.Random(1), SpikeDetector("gradient norm")
    for _ in range(200):
        detector.add(abs(noise.gauss(0, 3)) + 0.01)
    assert detector.add(10 * 2.4 * 1.2) is not None


def test_values_that_are_not_finite_are_another_matter() -> None:
    detector = SpikeDetector("loss")
    assert detector.add(math.nan) is None
    assert detector.add(math.inf) is None
