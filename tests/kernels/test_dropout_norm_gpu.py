"""Dropout, residual and layer norm on a GPU: errors, equal bits in two runs, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_dropout_norm_operator import call
from tests.ops.comparing import run
from tests.ops.test_dropout_norm import random_inputs, random_rows
from unimo_ds.ops.dropout import dropout
from unimo_ds.ops.layout import make_layout

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("size", [256, 768, 1024])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_native_equals_fp64_and_itself(dtype, size, probability):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    keys = make_layout([512, 101, 1, 300]).position_keys
    rows = len(keys)
    inputs = random_inputs(rows, size)
    inputs = [tensor.to(dtype).double() for tensor in inputs]
    exact, exact_gradients = run(call("reference", keys, probability), inputs, torch.float64)
    on_gpu = [tensor.cuda() for tensor in inputs]
    upstream_safe = [run(call(path, keys.cuda(), probability), on_gpu, dtype) for path in ("fused", "native", "native")]
    (plain, plain_gradients), (found, gradients), (again, gradients_again) = upstream_safe
    assert torch.equal(found, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_again, strict=True))
    quadruples = [(found, plain, exact, 2), *zip(gradients, plain_gradients, exact_gradients, [3] * 4, strict=True)]
    for one, other, truth, factor in quadruples:
        floor = torch.finfo(dtype).eps * float(truth.abs().max())
        error = float((one.cpu().double() - truth).abs().max())
        assert error <= factor * float((other.cpu().double() - truth).abs().max()) + floor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [768, 2056])
def test_dropout_alone_has_the_bits_of_the_plain_path(size, dtype):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    keys = make_layout([512, 101, 1, 300]).position_keys.cuda()
    results = []
    for path in ("plain", "native"):
        x = random_rows(len(keys), size).to("cuda", dtype).requires_grad_()
        dropped = dropout(x, keys, probability=0.1, site=4, path=path)
        results.append((dropped, *torch.autograd.grad(dropped, x, torch.ones_like(x) * 1.7)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_cuda_graphs_hold_it():
    keys = make_layout([70, 20, 130]).position_keys.cuda()
    inputs = [
        tensor.half().cuda() for tensor in (random_rows(220, 768), random_rows(220, 768), *[random_rows(768)] * 2)
    ]
    expected = call("native", keys, 0.1)(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call("native", keys, 0.1)(*inputs)
    graph.replay()
    assert torch.equal(output, expected)
