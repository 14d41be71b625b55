"""The whole model under torch.compile, with the kernels' own sources run on the CPU: one graph, the same bits."""

from __future__ import annotations

import torch

from tests import support
from tests.models.test_unimo import total, training_batch
from unimo_ds.models.unimo import Unimo
from unimo_ds.ops.native import library


def test_the_model_is_one_graph_and_gives_the_same_bits_forward_and_backward(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    model = Unimo(support.model_config(hidden_size=128), seed=3).bfloat16().train()

    def step(batch):
        return total(model(batch))

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for num_examples in (2, 3):
        batch, found = training_batch(num_examples), []
        for run in (step, compiled):
            loss = run(batch)
            found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
        assert all(map(torch.equal, *found))
        assert all(bool(tensor.isfinite().all()) for tensor in found[0])
