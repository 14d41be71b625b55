"""Notice a loss or gradient that is far off its recent course, so that the samples of that step are on record.

A spike is finite and is trained on (clipping bounds its update); what is not finite is skipped (see `setup.Engine.step`).
"""

from __future__ import annotations

import math

WARM_UP = 50
"""Values seen before any is called a spike: the first steps of a run fall steeply."""
_MEMORY = 0.98
_DEVIATIONS = 6.0
_RATIO = 10.0


class SpikeDetector:
    """Running mean and deviation of one positive number."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._mean = self._variance = 0.0
        self._seen = 0

    def add(self, value: float) -> str | None:
        """Take the next value; says what is wrong with it, if anything. Spikes do not move the mean they are held against."""
        if not math.isfinite(value):
            return None
        deviation = math.sqrt(self._variance)
        if self._seen >= WARM_UP:
            # Six deviations of a very even course are still close by: a fifth of the mean is the least that counts.
            limit = min(self._mean + max(_DEVIATIONS * deviation, 0.2 * self._mean), _RATIO * self._mean)
            if value > limit:
                return f"{self.name} {value:.4g} where {self._mean:.4g} ± {deviation:.2g} is usual"
        self._seen += 1
        # A plain average at first, a fading one later.
        share = max(1.0 - _MEMORY, 1.0 / self._seen)
        difference = value - self._mean
        self._mean += share * difference
        self._variance = (1.0 - share) * (self._variance + share * difference * difference)
        return None
