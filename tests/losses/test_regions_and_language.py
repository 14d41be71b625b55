"""Sums of the visual and language losses against their formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests import support
from unimo_ds.config import MaskingConfig, RunConfig
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import LanguageObjective
from unimo_ds.losses.language import language_loss_sum
from unimo_ds.losses.regions import normalised_pixels, region_classification_sum, region_regression_sum
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.seed import generator


def test_regression_sums_regions_and_averages_elements():
    predictions, targets = torch.zeros(3, 4), torch.full((3, 4), 2.0, dtype=torch.float16)
    assert region_regression_sum(predictions, targets).item() == 3 * 4.0


def test_pixels_are_normalised_within_each_patch():
    """By the formula of masked autoencoders, from what a batch holds in fp16; a patch of one colour says nothing."""
    random = generator(3)
    pixels = (random.random((5, 48)) * np.array([[2.0], [0.5], [0.02], [0.0], [1.0]]) - 0.7).astype(np.float16)
    wide = pixels.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True, ddof=1) + 1e-6)
    found = normalised_pixels(torch.from_numpy(pixels))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[[0, 1, 4]].std(1), 1, rtol=1e-4)
    assert not found[3].any()
    assert normalised_pixels(torch.zeros(0, 48)).shape == (0, 48)


def test_only_the_regression_of_regions_changes():
    """The same batch, once as its pixels are, once normalised."""
    batch = pack([support.example(position) for position in range(6)])
    assert len(batch.masked_region_at) > 0
    output = Unimo(support.model_config(), seed=3).eval()(batch)
    config = RunConfig(recipe="test")
    changed = dataclasses.replace(config, masking=MaskingConfig(normalised_pixels=True))
    plain, normalised = (
        {one.name: one.loss_sum(output, batch).item() for one in PretrainingTask.of(settings).objectives}
        for settings in (config, changed)
    )
    targets = batch.masked_region_features.numpy().astype(np.float64)
    targets = (targets - targets.mean(1, keepdims=True)) / np.sqrt(targets.var(1, keepdims=True, ddof=1) + 1e-6)
    predictions = output.region_predictions.detach().double().numpy()
    expected = np.square(predictions - targets).mean(1).sum()
    assert normalised.pop("region_regression") == pytest.approx(expected, rel=1e-4)
    assert plain.pop("region_regression") != pytest.approx(expected, rel=1e-2)
    assert normalised == plain


def test_classification_is_soft_cross_entropy_of_the_stored_classes():
    logits = torch.randn(2, 5)
    ids = torch.tensor([[1, 3], [0, 4]])
    probabilities = torch.tensor([[0.6, 0.2], [0.25, 0.25]])
    full = torch.zeros(2, 5).scatter(1, ids, probabilities / probabilities.sum(-1, keepdim=True))
    expected = torch.nn.functional.cross_entropy(logits, full, reduction="sum")
    torch.testing.assert_close(region_classification_sum(logits, ids, probabilities), expected)


def test_empty_inputs_sum_to_zero_with_a_gradient_path():
    logits = torch.zeros(0, 5, requires_grad=True)
    total = region_classification_sum(logits, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    total = total + region_regression_sum(logits, torch.zeros(0, 5))
    total.backward()
    assert total.item() == 0.0
    assert logits.grad.shape == (0, 5)


def test_language_objectives_are_summed_apart():
    losses, objectives = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0])
    assert language_loss_sum(losses, objectives, objective=LanguageObjective.MASKED).item() == 5.0
    assert language_loss_sum(losses, objectives, objective=LanguageObjective.SEQUENCE_TO_SEQUENCE).item() == 2.0
