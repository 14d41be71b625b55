"""Shared candidates in a ring: the loss, every gradient and the accuracies are those of gathering, and of one process.

Transfers are matched by their order alone, as NCCL does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.launching import launch
from unimo_ds.ops.native import build, library

WORKER = Path(__file__).with_name("ring_worker.py")
CASES = [
    *({"exchange": "ring", "path": "tiled", "form": form, "groups": 1} for form in ("one_log", "two_logs", "log_each")),
    {"exchange": "ring", "path": "tiled", "form": "one_log", "groups": 2},
    {"exchange": "ring", "path": "native", "form": "two_logs", "groups": 2},
    {"exchange": "gather", "path": "native", "form": "log_each", "groups": 2},
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    build.build_host("sm_80")
    output = tmp_path_factory.mktemp("ring") / "results.json"
    plain = [{**case, "exchange": "gather", "path": "tiled"} for case in CASES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.ON_HOST, "sm_80")
        launch(WORKER, [json.dumps([*CASES, *plain]), str(output)], processes=3)
    return json.loads(output.read_text())


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_a_ring_equals_gathering_on_one_process(index, processes, results):
    found, expected = results[index][str(processes)], results[len(CASES) + index]["1"]
    # The kernels take fp32 vectors as fp16.
    exact = CASES[index]["path"] == "tiled"
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12 if exact else 1e-3)
    assert found["accuracies"] == expected["accuracies"]
    for one, other in zip(found["gradients"], expected["gradients"], strict=True):
        one, other = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
        tolerance = (1e-11 if exact else 4e-3) * float(other.abs().max())
        assert float((one - other).abs().max()) <= tolerance
