"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from unimo_ds.config import ScheduleConfig

_DROPS_AT, _DROP = (0.6, 0.8), 0.1
"""Epochs 24 and 32 of the 40 of UNIMO's retrieval."""


def learning_rate(step: int, *, peak: float, schedule: ScheduleConfig) -> float:
    """Linear warm-up from peak / warmup_steps to the peak, then the decay of `schedule.form`, over at `total_steps`.

    Args:
        step: optimizer steps already taken (the first update is step 0 and has a rate above zero).
        peak: the highest rate, reached at step `warmup_steps` - 1.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    left = schedule.total_steps - step
    if schedule.form == "drops":
        return peak * math.prod(_DROP for share in _DROPS_AT if step >= share * schedule.total_steps)
    if schedule.form == "linear_from_start":
        return peak * max(left, 0) / schedule.total_steps
    return peak * max(left, 0) / max(schedule.total_steps - schedule.warmup_steps, 1)
