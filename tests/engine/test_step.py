"""The host waits for the device once a step. Tensors without data show it: whoever asks them for a number fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests import support
from tests.distributed.step_worker import step_batch
from unimo_ds.config import ContrastConfig, LossWeights
from unimo_ds.engine.protocol import StepResult
from unimo_ds.engine.step import train_step
from unimo_ds.models.unimo import Unimo
from unimo_ds.ops.native import library
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.communicator import SingleProcess

META = torch.device("meta")


class OneReading(SingleProcess):
    """Where the step reads what was measured; counts how often."""

    def __init__(self) -> None:
        self.readings = 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.readings += tensor.is_meta
        return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor


class DatalessEngine:
    """An engine whose device holds shapes alone."""

    def __init__(self, model: Unimo) -> None:
        self.device, self.communicator, self.model = META, OneReading(), model

    def forward(self, *arguments):
        return self.model(*arguments)

    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None:
        loss.backward()

    def step(self, *, is_finite: bool = True, is_wanted: bool = True) -> StepResult:
        return StepResult(applied=True, gradient_norm=1.0, loss_scale=1.0)

    def set_learning_rate(self, learning_rate: float) -> None: ...


@pytest.mark.parametrize("form", ["one_log", "two_logs", "log_each"])
@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_nothing_is_read_from_the_device_but_what_was_measured(monkeypatch, form, exchange, micro_batches):
    # The kernels' own way: their operators know their shapes.
    monkeypatch.setattr(library, "refusal", lambda *_, **__: None)
    numbers = {"block_rows": 64, "whole_length": 128}
    facts = {f"unimo_attention_{name}": lambda number=number: number for name, number in numbers.items()}
    monkeypatch.setattr(library, "library_of", lambda _: SimpleNamespace(**facts))
    model = Unimo(support.model_config(hidden_size=64, num_heads=1), attention="native").to(META, torch.bfloat16)
    engine = DatalessEngine(model.train())
    contrast = ContrastConfig(form=form, exchange=exchange)
    task = PretrainingTask(contrast=contrast, weights=LossWeights(), contrastive_path="native")
    batch = step_batch(0, rank=0, world_size=1, micro_batches=micro_batches, group_pairs=0)
    encoded: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: encoded.append(arguments[0].num_positions))
    metrics = train_step(engine, task, batch, learning_rate=1e-3)
    assert engine.communicator.readings == 1
    assert metrics.counts["contrastive"] > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    whole = [one.num_positions for one in batch.micro_batches]
    assert [encoded[0], *encoded[micro_batches:]] == whole
    rehearsed = encoded[1:micro_batches]  # all but the first: less of each
    assert all(part < all_of_it or not all_of_it for part, all_of_it in zip(rehearsed, whole[1:], strict=True))


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.nonzero, torch.bincount, lambda tensor: tensor[tensor > 0]])
def test_asking_such_a_tensor_fails(ask):
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.ones(1, dtype=torch.int64, device=META))
