"""What a reading of the speed holds on a device of which no peak is known."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from tests import support
from tests.support import model_config
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import StepBatch
from unimo_ds.engine.speed import SpeedMeter, stream_shape
from unimo_ds.engine.stragglers import Stopwatch
from unimo_ds.models.accounting import training_flops


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


def test_rates_are_those_of_the_steps_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of four seconds, of which the batch takes one, and the forward pass a half."""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cpu, sizes = torch.device("cpu"), {"feature_size": support.FEATURES, "classes_per_region": support.STORED_CLASSES}
    forward_time, batch = Stopwatch(cpu), pack([support.example(3)], **sizes)
    meter = SpeedMeter(model_config(), device=cpu, forward_time=forward_time)

    def batches() -> Iterator[StepBatch]:
        for number in range(2):
            clock[0] += 1.0
            yield StepBatch(step=number, num_samples=1, micro_batches=(batch, batch))

    for _ in range(2):
        for step in meter.waiting(batches()):
            with forward_time:
                clock[0] += 0.5
            clock[0] += 2.5
            meter.add(step, positions=10, bytes_read=100, bad_samples=0)
        assert meter.read() == pytest.approx(
            {
                "speed/seconds_per_step": 4.0,
                "speed/tokens_per_second": 2.5,
                "speed/data_wait_share": 0.25,
                "speed/forward_seconds": 0.5,
                "speed/teraflops_per_rank": training_flops(model_config(), stream_shape([batch] * 4)) / 8.0 / 1e12,
                "data/bytes_per_second": 25.0,
                "data/bad_samples": 0.0,
            }
        )
