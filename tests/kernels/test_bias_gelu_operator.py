"""Bias and gelu by the kernels' own sources run on the CPU: errors, gradients, tails, tracing, refusals."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.nn import functional

from tests.ops.comparing import assert_within_budget
from unimo_ds.ops.linear_gelu import linear_gelu
from unimo_ds.ops.native import bias_gelu as native
from unimo_ds.ops.native import build, library
from unimo_ds.utils.errors import UserError


def random_rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def plain(x, weight, bias):
    return functional.gelu(functional.linear(x, weight, bias))


@pytest.mark.parametrize(("architecture", "dtype"), [("sm_70", torch.float16), ("sm_80", torch.bfloat16)])
@pytest.mark.parametrize("size", [8, 1032])
@pytest.mark.parametrize("rows", [0, 1, 21])
def test_native_equals_plain(monkeypatch, rows, size, architecture, dtype):
    monkeypatch.setenv(library.ON_HOST, architecture)
    inputs = [random_rows(rows, 16), random_rows(size, 16) / 4, random_rows(size)]
    assert_within_budget(lambda *tensors: linear_gelu(*tensors, path="native"), plain, inputs, dtype)


def test_a_bias_that_begins_anywhere_in_a_flat_buffer_is_taken(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    x, flat = random_rows(3, 16).bfloat16(), random_rows(17).bfloat16()
    assert flat[1:].data_ptr() % 16
    found = native.bias_gelu(x, flat[1:].requires_grad_())
    assert torch.equal(found, native.bias_gelu(x, flat[1:].clone()))
    found.sum().backward()


def test_tails_are_as_good_as_the_rest(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    x = torch.linspace(-12, 12, 4096).to(torch.bfloat16).view(4, 1024)
    found = native.bias_gelu(x, torch.zeros(1024, dtype=torch.bfloat16)).double()
    wide = x.double()
    exact = wide * 0.5 * torch.special.erfc(-wide / 2**0.5)
    assert ((found - exact).abs() <= 1.01 / 256 * exact.abs()).all()


def test_fields_match_the_sources():
    size = library.load(build.build_host("sm_80")).unimo_bias_gelu_argument_bytes()
    assert ctypes.sizeof(native.BiasGeluArguments) == size


@pytest.mark.parametrize(
    ("size", "dtype", "words"),
    [(12, torch.float16, "multiple of 8"), (16, torch.float32, "float16 and bfloat16")],
)
def test_what_the_kernels_cannot_take_is_refused_by_name(monkeypatch, size, dtype, words):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    tensors = [torch.ones(3, 4, dtype=dtype), torch.ones(size, 4, dtype=dtype), torch.ones(size, dtype=dtype)]
    with pytest.raises(UserError, match=words):
        linear_gelu(*tensors, path="native")
    assert torch.equal(linear_gelu(*tensors), plain(*tensors))
