"""The learning rate as a pure function of the step: nothing to save, nothing to resume.

Each form is a function of the optimizer steps already taken, from the end of the warm-up to `total_steps`.
"""

from __future__ import annotations

import math

from unimo_ds.config import ScheduleConfig

_DROPS_AT, _DROP = (0.6, 0.8), 0.1
"""Epochs 24 and 32 of 40 in UNIMO's retrieval."""


def learning_rate(step: int, *, peak: float, schedule: ScheduleConfig) -> float:
    """Linear warm-up from peak / warmup_steps to the peak, then the decay of `schedule.form`, which ends at `total_steps`.

    Args:
        step: optimizer steps already taken (the first update is step 0 and has a rate above zero).
        peak: the highest rate, reached at step `warmup_steps` - 1.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    return DECAYS[schedule.form](step, peak, schedule)


def linear(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """peak * (total - step) / (total - warmup), as BERT and RoBERTa."""
    return peak * _left(step, schedule) / max(schedule.total_steps - schedule.warmup_steps, 1)


def linear_from_start(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """peak * (total - step) / total, as UNIMO's fine-tuning."""
    return peak * _left(step, schedule) / schedule.total_steps


def drops(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """peak, peak / 10 from 0.6 * total on, peak / 100 from 0.8 * total on, as UNIMO's retrieval."""
    return peak * math.prod(_DROP for share in _DROPS_AT if step >= share * schedule.total_steps)


def cosine(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """peak * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2: Loshchilov and Hutter 2017 without restarts, as CLIP and
    open_clip's `cosine_lr`."""
    if not _left(step, schedule):
        return 0.0
    done = (step - schedule.warmup_steps) / (schedule.total_steps - schedule.warmup_steps)
    return peak * (1 + math.cos(math.pi * done)) / 2


def stable(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """peak * min(1, (total - step) / decay), where decay = decay_share * total, rounded, at most total - warmup: warm-up,
    stable, decay (Hägele et al. 2024), as torchtitan's `decay_ratio` and open_clip's `const-cooldown`."""
    decay = min(round(schedule.decay_share * schedule.total_steps), schedule.total_steps - schedule.warmup_steps)
    return peak * min(1.0, _left(step, schedule) / max(decay, 1))


DECAYS = {"linear": linear, "linear_from_start": linear_from_start, "drops": drops, "cosine": cosine, "stable": stable}
"""By `schedule.form`."""


def _left(step: int, schedule: ScheduleConfig) -> int:
    return max(schedule.total_steps - step, 0)
