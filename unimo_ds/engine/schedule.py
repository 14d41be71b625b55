"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

from unimo_ds.config import ScheduleConfig


def learning_rate(step: int, *, peak: float, schedule: ScheduleConfig) -> float:
    """Linear warm-up from peak / warmup_steps to the peak, then linear decay that would reach zero at `total_steps`.

    Args:
        step: optimizer steps already taken (the first update is step 0 and has a rate above zero).
        peak: the highest rate, reached at step `warmup_steps` - 1.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    left = schedule.total_steps - step
    return peak * max(left, 0) / max(schedule.total_steps - schedule.warmup_steps, 1)
