"""Each metric equals its package's own published example."""

from __future__ import annotations

import pytest

from unimo_ds.finetune.metrics import classification
from unimo_ds.finetune.results import join_seeds, summarise


def test_accuracy_as_in_scikit_learns_documentation():
    assert classification.accuracy([0, 2, 1, 3], [0, 1, 2, 3]) == 0.5


def test_matthews_as_in_scikit_learns_documentation():
    assert classification.matthews([+1, -1, +1, +1], [+1, +1, +1, -1]) == pytest.approx(-0.3333, abs=1e-4)
    assert classification.matthews([1, 1, 1], [0, 1, 1]) == 0.0


def test_correlations_as_in_scipys_documentation():
    pearson, _ = classification.correlations([10, 9, 2.5, 6, 4, 3, 2], [1, 2, 3, 4, 5, 6, 7])
    assert pearson == pytest.approx(-0.828503883588428, rel=1e-12)
    _, spearman = classification.correlations([5, 6, 7, 8, 7], [1, 2, 3, 4, 5])
    assert spearman == pytest.approx(0.8207826816681233, rel=1e-12)
    assert classification.correlations([1, 1, 1], [0, 1, 2]) == (0.0, 0.0)


def test_confidence_interval_of_seeds():
    """Mean 2, deviation 1, three values: t of 2 degrees of freedom at 97.5 % is 4.302653 (any table)."""
    found = summarise([1.0, 2.0, 3.0])
    assert found["mean"] == found["median"] == 2.0
    assert found["confidence_95"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    alone = summarise([0.5])
    assert alone["mean"] == 0.5
    assert alone["confidence_95"] is None
    joined = join_seeds([{"metrics": {"a": 1.0, "b": 0.0}}, {"metrics": {"a": 0.0}}])
    assert set(joined) == {"a"}
