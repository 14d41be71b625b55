"""The model's own laws: packing, order of regions, masks and dropout change nothing that they should not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests import support
from unimo_ds.data.packing import pack, pack_sequences
from unimo_ds.data.schema import PackedBatch
from unimo_ds.models.unimo import ModelOutput, Unimo

FIELDS = [field.name for field in dataclasses.fields(ModelOutput)]


def make_model(*, double: bool = True, **changes) -> Unimo:
    model = Unimo(support.model_config(**changes), seed=3)
    return model.double() if double else model


def training_batch(count: int = 6) -> PackedBatch:
    return pack(
        [support.example(position) for position in range(count)],
        feature_size=support.FEATURES,
        classes_per_region=support.STORED_CLASSES,
    )


def total(output: ModelOutput) -> torch.Tensor:
    """A scalar that every output has a part in."""
    return sum(
        (
            getattr(output, name).double()
            * torch.arange(1, getattr(output, name).numel() + 1).view_as(getattr(output, name))
        )
        .sin()
        .sum()
        for name in FIELDS
        if name != "language_correct"
    )


def test_shapes_of_every_output():
    batch = training_batch()
    output = make_model(double=False)(batch)
    assert output.language_losses.shape == batch.language_at.shape
    assert output.language_losses.dtype == torch.float32
    assert output.language_correct.dtype == torch.bool
    assert output.region_predictions.shape == (len(batch.masked_region_at), support.FEATURES)
    assert output.region_class_logits.shape == (len(batch.masked_region_at), support.CLASSES)
    assert output.pooled_images.shape == (len(batch.pooled_image_at), 32)
    assert output.pooled_texts.shape == (len(batch.pooled_text_at), 32)
    assert output.temperature.shape == ()
    assert float(output.temperature) == pytest.approx(0.07, abs=1e-6)


def test_a_packed_stream_equals_its_sequences_one_by_one():
    model = make_model().train()
    sequences = [sequence for position in range(6) for sequence in support.example(position).sequences]
    together = model.encode(pack_sequences(sequences, feature_size=support.FEATURES))
    alone = torch.cat([model.encode(pack_sequences([one], feature_size=support.FEATURES)) for one in sequences])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_an_empty_batch_runs_every_module_and_gives_zero_gradients():
    model = make_model(double=False)
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    total(model(training_batch())).backward()
    full, ran[:] = list(ran), []
    model.zero_grad()
    total(model(pack([]))).backward()
    assert ran == full
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(not gradient.any() for name, gradient in gradients.items() if name != "temperature.raw")


def test_gradients_reach_every_parameter():
    model = make_model(double=False)
    total(model(training_batch())).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
