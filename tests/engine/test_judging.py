"""What a step's numbers say: which skipped updates count against the run, and which spikes make a row."""

from __future__ import annotations

import math

from unimo_ds.config import SpikeConfig
from unimo_ds.engine.judging import Judgement, judge
from unimo_ds.engine.state import Progress
from unimo_ds.engine.step import StepMetrics

SPIKES = SpikeConfig(warm_up_steps=2)


def taken(before: Progress, *, loss: float = 2.0, norm: float = 1.0, scale: float = 1.0, applied: bool) -> Judgement:
    metrics = StepMetrics(loss, {}, {}, {}, 0, 0, 0, norm, scale, 0.07, 1e-3, applied)
    return judge(before, before.step, metrics, SPIKES, loss_scale_floor=1.0)


def usual() -> Progress:
    progress = Progress()
    for _ in range(4):
        judged = taken(progress, applied=True)
        assert not judged.is_broken
        assert not judged.spike
        progress = judged.progress
    assert progress.step == progress.loss_course.seen == progress.gradient_course.seen == 4
    assert progress.skipped == progress.spikes_in_a_row == 0
    return progress


def test_an_overflow_counts_once_the_loss_scale_cannot_fall() -> None:
    overflown = taken(usual(), norm=math.inf, scale=2.0, applied=False)
    assert not overflown.is_broken
    assert (overflown.progress.skipped, overflown.progress.skipped_in_a_row) == (1, 0)
    for broken in (
        taken(usual(), norm=math.inf, scale=1.0, applied=False),
        taken(usual(), loss=math.nan, scale=2.0, applied=False),
    ):
        assert broken.is_broken
        again = taken(broken.progress, loss=math.nan, applied=False).progress
        assert (again.skipped, again.skipped_in_a_row) == (2, 2)
        # An overflow in between keeps the row, an update ends it.
        between = taken(again, norm=math.inf, scale=2.0, applied=False).progress
        assert (between.skipped, between.skipped_in_a_row) == (3, 2)
        assert taken(between, applied=True).progress.skipped_in_a_row == 0


def test_a_row_of_spikes_begins_with_the_first_and_ends_with_a_usual_step() -> None:
    first = taken(usual(), loss=50.0, applied=False)
    assert not first.is_broken
    assert first.spike.startswith("loss 50 where 2 ")
    assert (first.progress.first_spike, first.progress.spikes_in_a_row, first.progress.loss_course.seen) == (4, 1, 4)
    lost = taken(first.progress, loss=math.nan, applied=False).progress
    assert (lost.first_spike, lost.spikes_in_a_row) == (4, 1)
    second = taken(lost, loss=50.0, norm=90.0, applied=False)
    assert "; gradient norm 90 where 1 " in second.spike
    assert (second.progress.first_spike, second.progress.spikes_in_a_row) == (4, 2)
    over = taken(second.progress, applied=True).progress
    assert (over.spikes_in_a_row, over.loss_course.seen) == (0, 5)
