"""What a reading of the speed holds on a device of which no peak is known."""

from __future__ import annotations

import pytest
import torch

from tests.support import model_config
from unimo_ds.data.schema import StepBatch
from unimo_ds.engine.speed import SpeedMeter
from unimo_ds.engine.stragglers import Stopwatch


def test_memory_is_told_of_any_gpu_and_utilisation_of_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    found = {}
    for name in ("NVIDIA RTX A6000", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        meter = SpeedMeter(model_config(), device=torch.device("cuda"), forward_time=Stopwatch(torch.device("cpu")))
        found[name] = meter.read()
    assert [values["memory/peak_gibibytes"] for values in found.values()] == [3.0, 3.0]
    assert ["speed/model_flops_utilisation" in values for values in found.values()] == [False, True]


def test_bad_samples_are_told_though_an_evaluation_or_a_save_came_between() -> None:
    cpu = torch.device("cpu")
    meter = SpeedMeter(model_config(), device=cpu, forward_time=Stopwatch(cpu))
    step = StepBatch(step=0, num_samples=1, micro_batches=(), bad_samples=(), bytes_read=0)
    meter.add(step, positions=1, bytes_read=0, bad_samples=2)
    meter.reset()
    meter.add(step, positions=1, bytes_read=0, bad_samples=1)
    assert [meter.read()["data/bad_samples"], meter.read()["data/bad_samples"]] == [3, 0]
