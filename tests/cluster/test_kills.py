"""kill -9 over a whole run; `python -m tests.cluster.kills --kills 200` is the long form."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.kills import torment


def test_two_kills_leave_the_same_bits(tmp_path: Path) -> None:
    outcome = torment(tmp_path, kills=2)
    assert outcome.damaged_latest == 0
    assert outcome.samples == 128 * 14
    assert (outcome.samples_lost, outcome.samples_doubled) == (0, 0)
    assert outcome.equal_files
    assert outcome.equal_metrics
    assert outcome.whole_board
