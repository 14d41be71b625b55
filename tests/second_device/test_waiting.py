"""How often the host waits for a device: a table of calls, and whole steps, in which it reads only what they measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.plain_engine import PlainEngine
from tests import second_device, support
from tests.distributed.step_worker import step_batch
from tests.second_device.test_training import OPTIMIZER, TAGGED, TUNED, data_of, task_on
from unimo_ds.config import ContrastConfig, LossWeights
from unimo_ds.engine.step import train_step
from unimo_ds.finetune.step import TaskStep
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.moving import moved

HOST, ROWS = torch.arange(12.0).view(3, 4), torch.tensor([0, 2])

WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "a copy": lambda there: HOST.to(there.device),
    "a list": lambda there: torch.tensor([1.0], device=there.device),
    "a copy back": lambda there: there.cpu(),
    "a list of it": lambda there: there.tolist(),
    "a number": lambda there: there[0, 0].item(),
    "a branch": lambda there: bool((there > 3).any()),
    "the host's indices": lambda there: there[ROWS],
    "a mask": lambda there: there[there > 3],
    "places": lambda there: there.nonzero(),
    "different ones": lambda there: there.unique(),
    "counts": lambda there: torch.bincount(there[0].long()),
    "repeats": lambda there: there.repeat_interleave(there[:, 1].long(), 0),
    "the host's number chosen": lambda there: torch.where(there > 3, there, HOST[0, 0]),
}
DOES_NOT: dict[str, Callable[[torch.Tensor], object]] = {
    "together": lambda there: moved((HOST, ROWS), there.device),
    "new ones": lambda there: (torch.arange(3, device=there.device), torch.full_like(there, 2.0)),
    "indices": lambda there: there[torch.arange(2, device=there.device)],
    "a choice": lambda there: torch.where(there > 3, there, 0.0),
    "a number put": lambda there: there.clone().masked_fill_(there > 3, 0.0),
    "a number assigned": lambda there: there.clone().__setitem__(0, 5.0),
    "so many repeats": lambda there: there.repeat_interleave(torch.arange(3, device=there.device), 0, output_size=3),
    "an order": lambda there: (there.sort(), there.argmax(1), there.cumsum(0), there.topk(2)),
}


@pytest.mark.parametrize(("number", "table"), [(True, WAITS), (False, DOES_NOT)])
def test_the_device_tells_who_waits(device: torch.device, number: bool, table: dict) -> None:
    there = HOST.to(device)
    for name, call in table.items():
        with second_device.waits(device) as found:
            call(there)
        assert bool(found) == number, name


def test_host_memory_must_not_change_under_a_copy() -> None:
    device, here = second_device.second_device(), HOST.clone()
    there = here.to(device, non_blocking=True)
    here.zero_()
    with pytest.raises(RuntimeError, match="Host memory was changed while a copy to second:0"):
        there.sum().item()
    (HOST + 1).to(
        device, non_blocking=True
    ).sum().item()  # memory given back is kept until then, as by CUDA's allocator


CASES = {
    "two_logs": (1, {"form": "two_logs"}, {}),
    "one_log with tags": (2, {"form": "one_log"}, TAGGED),
    "log_each round a ring": (2, {"form": "log_each", "exchange": "ring"}, {}),
    "pixels": (2, {"joint_encoding": "shared_image"}, {"num_image_layers": 1, **TAGGED}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_pre_training(device: torch.device, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    second_device.kernels(device, monkeypatch)
    micro_batches, contrast, changes = CASES[case]
    task = PretrainingTask(contrast=ContrastConfig(**contrast), weights=LossWeights(), contrastive_path="native")
    sizes = support.model_config(hidden_size=64, num_heads=1, **changes)
    model = Unimo(sizes, seed=5, attention="native").train()
    engine = PlainEngine(model, OPTIMIZER, device=device, dtype=torch.bfloat16)
    dealt = {"rank": 0, "world_size": 1, "micro_batches": micro_batches, "group_pairs": 0}
    for step in range(2):
        batch = step_batch(step, **dealt, with_tags=bool(sizes.region_tag_sizes))
        with second_device.waits(device) as found:
            assert train_step(engine, task, batch, learning_rate=1e-3).counts["contrastive"]
    assert len(found) == 2, found  # for what was measured, and for the gradients' norm


@pytest.mark.parametrize("name", ["sst2", "retrieval"])
def test_a_step_of_fine_tuning(
    device: torch.device, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_device.kernels(device, monkeypatch)
    changes = ("model.hidden_size=64", "model.num_heads=1", *TUNED[name])
    folder, tokenizer = data_of(name, tmp_path)
    task, config, _, engine, batches = task_on(device, name, folder, tokenizer, changes, torch.bfloat16)
    step = TaskStep(config.finetune, contrastive_path="native")
    for batch in batches:
        with second_device.waits(device) as found:
            step(engine, task, batch, learning_rate=1e-3)
    assert len(found) == 2, found
