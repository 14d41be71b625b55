"""R14, small: from two ranks at stage 2 to one at stage 3; `python -m tests.distributed.elastic` is the long form."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.elastic import STEPS_EACH, compare


def test_another_number_of_ranks_and_another_stage_read_the_same_and_learn_the_same(tmp_path: Path) -> None:
    outcome = compare(tmp_path, (2, 1), ("zero2_fp32", "zero3_fp32"))
    assert outcome.samples == 2 * STEPS_EACH * 14
    assert outcome.equal_batches
    assert outcome.largest_loss_difference < 1e-4
    assert outcome.largest_norm_difference < 1e-3
