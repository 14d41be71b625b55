"""Judges a step by its loss and gradient norm: whether one of them is not finite, or a spike.

All ranks see the same numbers, so they reach the same judgement.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from unimo_ds.config import SpikeConfig
from unimo_ds.engine.state import Progress
from unimo_ds.engine.step import StepMetrics


@dataclass(frozen=True)
class Judgement:
    progress: Progress
    """After the step."""
    is_broken: bool
    """Whether it counts toward `engine.max_skipped_steps`: there was no update, and not because of a spike."""
    spike: str
    """Description of a spike; empty if there is none."""


def judge(
    before: Progress, step: int, metrics: StepMetrics, spikes: SpikeConfig, *, loss_scale_floor: float
) -> Judgement:
    """step: number of the step just taken. loss_scale_floor: the lowest scale that overflows can lead to."""
    loss, norm = before.loss_course, before.gradient_course
    seen = (("loss", loss, metrics.loss), ("gradient norm", norm, metrics.gradient_norm))
    found = [course.describe(name, value) for name, course, value in seen if course.is_spike(value, spikes)]
    skipped = 0 if metrics.applied else 1
    # With a finite loss, an fp16 overflow is normal loss scaling; it counts only if the scale cannot fall further.
    is_at_end = not math.isfinite(metrics.loss) or metrics.loss_scale <= loss_scale_floor
    is_broken = bool(skipped) and is_at_end and not loss.is_spike(metrics.loss, spikes)
    if found:
        spikes_in_a_row = before.spikes_in_a_row + 1
    else:  # a non-finite step neither ends a series of spikes nor adds to it
        spikes_in_a_row = before.spikes_in_a_row * skipped
    progress = dataclasses.replace(
        before,
        step=step + 1,
        skipped=before.skipped + skipped,
        skipped_in_a_row=before.skipped_in_a_row + 1 if is_broken else before.skipped_in_a_row * skipped,
        loss_course=loss.after(metrics.loss, spikes),
        gradient_course=norm.after(metrics.gradient_norm, spikes),
        spikes_in_a_row=spikes_in_a_row,
        first_spike=before.first_spike if before.spikes_in_a_row else step,
    )
    return Judgement(progress, is_broken, "; ".join(found))
