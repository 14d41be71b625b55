"""Keyed dropout and the fused end of a sub-layer against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.ops.comparing import DTYPES, STREAMS, assert_within_budget, stream
from unimo_ds.ops.dropout import dropout, dropout_reference
from unimo_ds.ops.dropout_norm import dropout_add_layer_norm
from unimo_ds.ops.layout import make_layout

SIZE = 24


def random_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_inputs(num_rows: int, size: int = SIZE) -> list[torch.Tensor]:
    """x, residual, weight and bias."""
    shapes = ((num_rows, size), (num_rows, size), (size,), (size,))
    return [random_rows(*shape, seed=seed) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("name", STREAMS)
def test_fused_equals_reference(name, probability, dtype):
    keys = stream(name).position_keys

    def call(path):
        return lambda x, residual, weight, bias: dropout_add_layer_norm(
            x, residual, weight, bias, keys, probability=probability, site=5, epsilon=1e-5, path=path
        )

    assert_within_budget(call("fused"), call("reference"), random_inputs(len(keys)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_gradients_the_bits_are_those_of_training(dtype):
    keys = stream("prefixes").position_keys
    x, residual, weight, bias = (one.to(dtype) for one in random_inputs(len(keys)))
    results = []
    for is_training in (True, False):
        with torch.set_grad_enabled(is_training):
            results.append(
                dropout_add_layer_norm(x, residual, weight, bias, keys, probability=0.0, site=5, epsilon=1e-5)
            )
    assert torch.equal(*results)
    assert torch.equal(results[0], functional.layer_norm(residual + x, (SIZE,), weight, bias, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_equals_reference(dtype):
    keys = stream("prefixes").position_keys
    assert_within_budget(
        lambda x: dropout(x, keys, probability=0.4, site=2),
        lambda x: dropout_reference(x, keys, probability=0.4, site=2),
        [random_rows(len(keys), SIZE)],
        dtype,
    )


def test_no_dropout_is_the_identity():
    x = random_rows(3, SIZE)
    assert dropout(x, stream("one position").position_keys, probability=0.0, site=0) is x


def test_masks_belong_to_sequences_not_to_streams():
    one = make_layout([5, 8, 3], seeds=[10, 20, 30])
    other = make_layout([3, 5, 8], seeds=[30, 10, 20])
    x = torch.ones(16, SIZE)
    first = dropout(x, one.position_keys, probability=0.5, site=1).split([5, 8, 3])
    second = dropout(x, other.position_keys, probability=0.5, site=1).split([3, 5, 8])
    for index, twin in enumerate((1, 2, 0)):
        assert torch.equal(first[index], second[twin])
    assert not torch.equal(first[0][:3], first[1][:3])
