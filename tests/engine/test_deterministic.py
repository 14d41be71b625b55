"""`engine.deterministic`: what torch and cuBLAS are told before the device is touched, and gradients of the same bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.launching import started
from unimo_ds.config import EngineConfig


def test_gradients_are_the_same_bits_each_time() -> None:
    assert not EngineConfig().deterministic, "it costs speed"
    with started([sys.executable, str(Path(__file__).with_name("deterministic_worker.py"))]) as worker:
        output, _ = worker.communicate(timeout=120)
    told = json.loads(output.splitlines()[-1])
    assert told == {"switched": True, "workspaces": ":4096:8", "equal": [True] * 10}
