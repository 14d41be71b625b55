"""Sums of the visual and language losses against their formulas."""

from __future__ import annotations

import pytest
import torch

from unimo_ds.data.schema import LanguageObjective
from unimo_ds.losses.language import language_loss_sum
from unimo_ds.losses.regions import region_classification_sum, region_regression_sum


def test_regression_sums_regions_and_averages_elements():
    predictions, targets = torch.zeros(3, 4), torch.full((3, 4), 2.0, dtype=torch.float16)
    assert region_regression_sum(predictions, targets).item() == 3 * 4.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_16_bit_predictions_are_fp32(dtype):
    predictions, features = torch.randn(300, 5).to(dtype), torch.randn(300, 5).half()
    ids, probabilities = torch.randint(5, (300, 2)), torch.rand(300, 2)
    for found, exact in (
        (region_regression_sum(predictions, features), region_regression_sum(predictions.float(), features.float())),
        (
            region_classification_sum(predictions, ids, probabilities),
            region_classification_sum(predictions.float(), ids, probabilities),
        ),
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, exact)


def test_classification_is_soft_cross_entropy_of_the_stored_classes():
    logits = torch.randn(2, 5)
    ids = torch.tensor([[1, 3], [0, 4]])
    probabilities = torch.tensor([[0.6, 0.2], [0.25, 0.25]])
    full = torch.zeros(2, 5).scatter(1, ids, probabilities / probabilities.sum(-1, keepdim=True))
    expected = torch.nn.functional.cross_entropy(logits, full, reduction="sum")
    torch.testing.assert_close(region_classification_sum(logits, ids, probabilities), expected)
    torch.testing.assert_close(region_classification_sum(logits, ids, probabilities * 7), expected)
    assert region_classification_sum(logits, ids, probabilities * 0).item() == 0.0, "a region without a class"


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
