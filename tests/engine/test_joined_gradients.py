"""Gradients added and clipped together leave the bits that DeepSpeed leaves by going through the parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.launching import started


def test_joined_gradients_leave_the_bits_of_deepspeed() -> None:
    with started([sys.executable, str(Path(__file__).with_name("joined_gradients_worker.py"))]) as worker:
        output, _ = worker.communicate(timeout=120)
    never, always, not_clipped = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert all(one["equal"] for one in (never, always, not_clipped))
    assert min(always["norms"]) > 0.1
    assert always["norms"] != never["norms"] == not_clipped["norms"]
