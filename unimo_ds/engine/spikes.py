"""Notice a loss or gradient norm that is far off its recent course.

A course is a plain value that travels in checkpoints: a resumed run judges every step as one that never stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unimo_ds.config import SpikeConfig

_MEMORY = 0.98
_LEAST_RISE = 0.2
"""Six deviations of a very even course are still close by: a fifth of the mean is the least that counts."""


@dataclass(frozen=True)
class Course:
    """Running mean and variance of one positive number."""

    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def limit(self, config: SpikeConfig) -> float:
        """The value above which the next one is a spike; infinite during the warm-up."""
        if self.seen < config.warm_up_steps:
            return math.inf
        rise = max(config.deviations * math.sqrt(self.variance), _LEAST_RISE * self.mean)
        return min(self.mean + rise, config.ratio * self.mean)

    def is_spike(self, value: float, config: SpikeConfig) -> bool:
        """Whether a value is one. What is not finite is another matter, and is none."""
        return math.isfinite(value) and value > self.limit(config)

    def after(self, value: float, config: SpikeConfig) -> Course:
        """The course with one more value. Spikes do not move the mean that they are held against."""
        if not math.isfinite(value) or self.is_spike(value, config):
            return self
        seen = self.seen + 1
        # A plain average at first, a fading one later.
        share = max(1.0 - _MEMORY, 1.0 / seen)
        difference = value - self.mean
        return Course(
            mean=self.mean + share * difference,
            variance=(1.0 - share) * (self.variance + share * difference * difference),
            seen=seen,
        )

    def describe(self, name: str, value: float) -> str:
        """A spike in words."""
        return f"{name} {value:.4g} where {self.mean:.4g} ± {math.sqrt(self.variance):.2g} is usual"
