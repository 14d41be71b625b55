"""Bias and gelu on a GPU: errors, equal bits in two runs, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_bias_gelu_operator import plain, random_rows
from tests.ops.comparing import run
from unimo_ds.ops.linear_gelu import linear_gelu

pytestmark = pytest.mark.gpu


def native(x, weight, bias):
    return linear_gelu(x, weight, bias, path="native")


@pytest.mark.parametrize("rows", [1, 500, 3001])
@pytest.mark.parametrize("size", [256, 3072, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_native_equals_fp64_and_itself(dtype, size, rows):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    inputs = [random_rows(rows, 64), random_rows(size, 64) / 8, random_rows(size)]
    inputs = [tensor.to(dtype).double() for tensor in inputs]
    exact, exact_gradients = run(plain, inputs, torch.float64)
    on_gpu = [tensor.cuda() for tensor in inputs]
    (other, other_gradients), (found, gradients), (again, gradients_again) = (
        run(path, on_gpu, dtype) for path in (plain, native, native)
    )
    assert torch.equal(found, again)
    assert all(torch.equal(one, two) for one, two in zip(gradients, gradients_again, strict=True))
    quadruples = [(found, other, exact, 2), *zip(gradients, other_gradients, exact_gradients, [3] * 3, strict=True)]
    for one, two, truth, factor in quadruples:
        floor = torch.finfo(dtype).eps * float(truth.abs().max())
        error = float((one.cpu().double() - truth).abs().max())
        assert error <= factor * float((two.cpu().double() - truth).abs().max()) + floor


def test_cuda_graphs_hold_it():
    inputs = [tensor.half().cuda() for tensor in (random_rows(220, 64), random_rows(256, 64), random_rows(256))]
    expected = native(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = native(*inputs)
    graph.replay()
    assert torch.equal(output, expected)
