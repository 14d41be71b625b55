"""The kernels on a GPU: errors, equal bits in two runs, no synchronisation with the host, CUDA graphs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.test_attention_operator import STREAMS, random_inputs, stream
from unimo_ds.ops.attention import packed_attention
from unimo_ds.ops.layout import Layout, make_layout
from unimo_ds.ops.native import attention as native

pytestmark = pytest.mark.gpu


def on_gpu(layout: Layout) -> Layout:
    return layout.to(torch.device("cuda"))


def run(inputs: torch.Tensor, layout: Layout, probability: float, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = inputs.detach().requires_grad_()
    output = packed_attention(leaf, layout, probability=probability, site=3, path=path)
    return output.detach(), torch.autograd.grad(output.double().square().sum(), leaf)[0]


def formats() -> list[torch.dtype]:
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return [torch.float16, torch.bfloat16] if capable else [torch.float16]


@pytest.mark.parametrize("dtype", formats())
@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [*STREAMS, "mix"])
def test_native_equals_fp64_and_itself(monkeypatch, name, whole, probability, dtype):
    monkeypatch.setattr(native, "WHOLE_BACKWARD", whole)
    mix = make_layout([512, 101, 512, 173, 20], prefix_lengths=[512, 101, 200, 173, 0])
    layout = mix if name == "mix" else stream(name)
    inputs = random_inputs(layout.num_positions).to(dtype)
    exact, exact_gradient = run(inputs.double(), layout, probability, "reference")
    plain, plain_gradient = run(inputs.cuda(), on_gpu(layout), probability, "bucketed")
    found, gradient = run(inputs.cuda(), on_gpu(layout), probability, "native")
    again, gradient_again = run(inputs.cuda(), on_gpu(layout), probability, "native")
    assert torch.equal(found, again)
    assert torch.equal(gradient, gradient_again)
    triples = ((found, plain, exact, 2), (gradient, plain_gradient, exact_gradient, 3))
    for one, other, truth, factor in triples:
        if truth.numel():
            floor = torch.finfo(dtype).eps * float(truth.abs().max())
            error = float((one.cpu().double() - truth).abs().max())
            assert error <= factor * float((other.cpu().double() - truth).abs().max()) + floor


@pytest.mark.parametrize("owners", [None, [-1, 2, -1]])
def test_no_synchronisation_and_cuda_graphs(owners):
    layout = on_gpu(make_layout([70, 20, 130], prefix_lengths=[70, 3, 64], prefix_of=owners))
    inputs = random_inputs(220).half().cuda()
    expected = packed_attention(inputs, layout, probability=0.1, site=3, path="native")
    torch.cuda.set_sync_debug_mode("error")
    try:
        fresh = dataclasses.replace(layout)  # its table of blocks is made again
        assert fresh.tables == {}
        native.attention(inputs, fresh, probability=0.1, site=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = native.attention(inputs, layout, probability=0.1, site=3)
    graph.replay()
    assert torch.equal(output, expected)
