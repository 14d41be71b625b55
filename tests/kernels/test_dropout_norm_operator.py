"""Dropout, residual and layer norm by the kernels' own sources run on the CPU: errors, gradients, masks, tracing, refusals."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.ops.comparing import assert_within_budget, stream
from tests.ops.test_dropout_norm import random_inputs, random_rows
from unimo_ds.ops.dropout import dropout
from unimo_ds.ops.dropout_norm import dropout_add_layer_norm
from unimo_ds.ops.native import build, library
from unimo_ds.ops.native.dropout_norm import DropoutNormArguments
from unimo_ds.utils.errors import UserError


def call(path: str, keys: torch.Tensor, probability: float):
    return lambda x, residual, weight, bias: dropout_add_layer_norm(
        x, residual, weight, bias, keys, probability=probability, site=5, epsilon=1e-5, path=path
    )


@pytest.mark.parametrize(("architecture", "dtype"), [("sm_70", torch.float16), ("sm_80", torch.bfloat16)])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("size", [8, 264, 768, 1024])
@pytest.mark.parametrize("name", ["empty", "one position", "prefixes"])
def test_native_equals_reference(monkeypatch, name, size, probability, architecture, dtype):
    monkeypatch.setenv(library.ON_HOST, architecture)
    keys = stream(name).position_keys
    inputs = random_inputs(len(keys), size)
    assert_within_budget(call("native", keys, probability), call("reference", keys, probability), inputs, dtype)


def test_the_mask_is_the_reference_mask_bit_for_bit(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    keys = stream("prefixes").position_keys
    x = torch.ones(len(keys), 64, dtype=torch.bfloat16, requires_grad=True)
    other = [torch.zeros_like(x), torch.ones(64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)]
    dropped = []
    for path in ("native", "reference"):
        output = call(path, keys, 0.3)(x, *other)
        upstream = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
        dropped.append(torch.autograd.grad(output, x, upstream)[0] == 0)
    assert torch.equal(*dropped)
    assert dropped[0].any()


def test_fields_match_the_sources():
    size = library.load(build.build_host("sm_80")).unimo_dropout_norm_argument_bytes()
    assert ctypes.sizeof(DropoutNormArguments) == size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [8, 264, 2056])
@pytest.mark.parametrize("name", ["empty", "one position", "prefixes"])
def test_dropout_alone_has_the_bits_of_the_plain_path(monkeypatch, name, size, dtype):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    keys = stream(name).position_keys
    results = []
    for path in ("plain", "native"):
        x = random_rows(len(keys), size).to(dtype).requires_grad_()
        dropped = dropout(x, keys, probability=0.3, site=4, path=path)
        results.append((dropped, *torch.autograd.grad(dropped, x, torch.ones_like(x) * 1.7)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("size", "dtype", "words"),
    [(12, torch.float16, "multiple of 8"), (2048, torch.float16, "1024"), (16, torch.float32, "float16 and bfloat16")],
)
def test_what_the_kernels_cannot_take_is_refused_by_name(monkeypatch, size, dtype, words):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    keys = stream("one position").position_keys
    tensors = [torch.ones(1, size, dtype=dtype)] * 2 + [torch.ones(size, dtype=dtype)] * 2
    with pytest.raises(UserError, match=words):
        call("native", keys, 0.1)(*tensors)
    assert call("auto", keys, 0.1)(*tensors).shape == (1, size)
