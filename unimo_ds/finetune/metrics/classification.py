"""GLUE's measures, by scikit-learn and SciPy.

Letters: E examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef


def accuracy(predicted_E: ArrayLike, true_E: ArrayLike) -> float:
    """Fraction of right answers."""
    return float(accuracy_score(np.asarray(true_E), np.asarray(predicted_E)))


def matthews(predicted_E: ArrayLike, true_E: ArrayLike) -> float:
    """Matthews correlation; 0 if all predictions are equal, or all right answers."""
    predicted, true = np.asarray(predicted_E), np.asarray(true_E)
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:  # scikit-learn says the same, with a warning
        return 0.0
    return float(matthews_corrcoef(true, predicted))


def correlations(predicted_E: ArrayLike, true_E: ArrayLike) -> tuple[float, float]:
    """Pearson and Spearman; 0 if neither is defined: all predictions are equal, or one is not a number."""
    predicted, true = np.asarray(predicted_E, np.float64), np.asarray(true_E, np.float64)
    if not np.isfinite(predicted).all() or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0, 0.0
    return float(pearsonr(predicted, true).statistic), float(spearmanr(predicted, true).statistic)
