"""The widened product of low precision against torch's own."""

from __future__ import annotations

import pytest
import torch

from tests.ops.comparing import DTYPES, assert_within_budget
from unimo_ds.ops.linear import linear, widens


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_linear_equals_torch(num_rows, dtype):
    generator = torch.Generator().manual_seed(7)
    shapes = ((num_rows, 6), (5, 6), (5,))
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    assert_within_budget(linear, torch.nn.functional.linear, inputs, dtype)


def test_without_a_bias():
    x, weight = torch.ones(2, 3).half(), torch.ones(4, 3).half()
    found = linear(x, weight.requires_grad_(), None)
    assert torch.equal(found, torch.full((2, 4), 3.0).half())
    found.sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 3), 2.0).half())


def test_full_precision_is_never_widened():
    assert not widens(torch.zeros(1))
    assert not widens(torch.zeros(1, dtype=torch.float64))
    assert widens(torch.zeros(1, dtype=torch.float16))
