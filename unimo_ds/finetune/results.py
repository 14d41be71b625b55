"""Results of several seeds: mean, spread and confidence interval of every metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as students_t

CONFIDENCE = 0.95


def summarise(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, smallest, largest, standard deviation and the half-width of the 95 % confidence interval of the mean.

    The last two need at least two values (Student's t with n - 1 degrees of freedom); None otherwise.
    """
    found = np.array(values, np.float64)
    several = len(found) > 1
    deviation = float(found.std(ddof=1)) if several else None
    half_width = None
    if deviation is not None:
        quantile = float(students_t.ppf((1 + CONFIDENCE) / 2, len(found) - 1))
        half_width = quantile * deviation / math.sqrt(len(found))
    return {
        "mean": float(found.mean()),
        "median": float(np.median(found)),
        "min": float(found.min()),
        "max": float(found.max()),
        "deviation": deviation,
        "confidence_95": half_width,
    }


def join_seeds(seeds: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """`summarise` of every metric that all seeds have."""
    names = [name for name in seeds[0]["metrics"] if all(name in one["metrics"] for one in seeds)]
    return {name: summarise([one["metrics"][name] for one in seeds]) for name in names}
