"""A forward pass without gradients in between does not make ZeRO-3 gather the whole model in the backward pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.launching import started


def test_zero_3_frees_parameters_in_the_backward_pass_all_the_same(tmp_path: Path) -> None:
    with started([sys.executable, str(Path(__file__).with_name("pending_worker.py")), str(tmp_path)]) as worker:
        output, _ = worker.communicate(timeout=120)
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [one["between"] for one in found] == [0, 0, 1, 2], output
    assert all(one["gathered"] <= 2 for one in found), found
