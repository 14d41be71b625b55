"""fp32 weights under autocast, as transformers' `Trainer` trains with `bf16=True`: gradients are fp32's, up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests import support
from tests.models.test_unimo import total, training_batch
from unimo_ds.models.unimo import Unimo
from unimo_ds.ops.score_blocks import Keys, log_sum_exps

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_model_trains(device: str) -> None:
    model = Unimo(support.model_config(), seed=3).train().to(device)
    batch, found = training_batch(3).to(torch.device(device)), []
    for is_on in (False, True):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_on):
            loss = total(model(batch))
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for (name, parameter), *gradients in zip(model.named_parameters(), *found, strict=True):
        assert gradients[1].dtype == parameter.dtype == torch.float32
        one, other = (gradient.double().flatten() for gradient in gradients)
        assert functional.cosine_similarity(one, other, dim=0) > 0.98, name


@pytest.mark.parametrize("device", DEVICES)
def test_scores_keep_their_precision(device: str) -> None:
    numbers = torch.arange(3, device=device)[:, None] * torch.tensor([0, 1, 1, 1], device=device)
    none = numbers[:, :0]
    rows, columns = torch.rand(3, 4, device=device), torch.rand(3, 4, device=device)

    def logs() -> torch.Tensor:
        return log_sum_exps(
            rows, columns, torch.tensor(9.0, device=device), Keys(numbers, numbers, none, none), both=True
        ).rows

    with torch.autocast(device, dtype=torch.bfloat16):
        found = logs()
    assert torch.equal(found, logs())
