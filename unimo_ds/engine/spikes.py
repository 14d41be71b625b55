"""Detects a loss or gradient norm far above its recent values.

A `Course` is a plain value saved in checkpoints: a resumed run judges every step as if it had never stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unimo_ds.config import SpikeConfig

_MEMORY = 0.98
_LEAST_RISE = 0.2
"""Least rise of a spike, as a fraction of the mean: in a very smooth course, six deviations are still small."""


@dataclass(frozen=True)
class Course:
    """Running mean and variance of one positive number."""

    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def limit(self, config: SpikeConfig) -> float:
        """The next value is a spike if above this; infinite during the warm-up."""
        if self.seen < config.warm_up_steps:
            return math.inf
        rise = max(config.deviations * math.sqrt(self.variance), _LEAST_RISE * self.mean)
        return min(self.mean + rise, config.ratio * self.mean)

    def is_spike(self, value: float, config: SpikeConfig) -> bool:
        """Whether a value is a spike. Non-finite values are not; they are handled elsewhere."""
        return math.isfinite(value) and value > self.limit(config)

    def after(self, value: float, config: SpikeConfig) -> Course:
        """The course with one more value. Spikes and non-finite values do not change it."""
        if not math.isfinite(value) or self.is_spike(value, config):
            return self
        seen = self.seen + 1
        # A plain average at first, an exponential one later.
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
