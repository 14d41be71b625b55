"""Gradients given to a backward pass leave the bits of the sum of products that has them, in every precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.losses.test_contrastive import EVERY_ROLE, make_table
from unimo_ds.config import ContrastConfig, LossWeights
from unimo_ds.engine.carried import carried
from unimo_ds.engine.contrast import contrast_of
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.communicator import SingleProcess


@pytest.mark.parametrize("loss_scale", [1.0, 2.0**16, 2.0**32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_a_sum_of_products_whose_value_is_0(dtype: torch.dtype, loss_scale: float) -> None:
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(7, 5, generator=random).to(dtype).requires_grad_()
    no_rows = torch.zeros(0, 5, dtype=dtype, requires_grad=True)
    number = torch.tensor(0.07, requires_grad=True)
    gradients = (torch.randn(7, 5, generator=random) * 1e-3, torch.zeros(0, 5), torch.tensor(0.3))
    tensors = (rows, no_rows, number)
    known = carried(tensors, gradients)
    product = sum((one.float() * gradient).sum() for one, gradient in zip(tensors, gradients, strict=True))
    found, expected = (torch.autograd.grad(one * loss_scale, tensors) for one in (known, product))
    assert known.item() == 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert bool(found[0].isinf().any()) == (dtype == torch.float16 and loss_scale > 2**20), (
        "what fp16 cannot hold is seen"
    )


def test_a_gradient_that_is_no_number_is_not_lost() -> None:
    rows = torch.ones(2, requires_grad=True)
    (found,) = torch.autograd.grad(carried((rows,), (torch.tensor([1.0, float("nan")]),)), rows)
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_pooled_vectors_are_found_in_fp32(dtype: torch.dtype) -> None:
    """Without a loss scale yet: of a large batch, fp16 would lose them."""
    table, num_images, num_texts = make_table(3, EVERY_ROLE)
    plan = make_plan(table, form="two_logs", sizes=share_sizes(table, SingleProcess()))
    task = PretrainingTask(contrast=ContrastConfig(), weights=LossWeights())
    rows = [torch.randn(count, 8).to(dtype) for count in (num_images, num_texts)]
    found, exact = (
        contrast_of(
            SimpleNamespace(communicator=SingleProcess()),
            task,
            plan,
            [SimpleNamespace(pooled_images=images, pooled_texts=texts, temperature=torch.tensor(0.07))],
            scale=1e-8,
        )
        for images, texts in (rows, [one.float() for one in rows])
    )
    for one, other in ((found.image_gradients, exact.image_gradients), (found.text_gradients, exact.text_gradients)):
        assert one[0].any()
        assert torch.equal(one[0], other[0])
