"""R15: weights that drifted apart between ranks stop the run before they are saved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from unimo_ds.engine.replicas import check_replicas
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError


class WithOther(SingleProcess):
    """A group whose second rank holds `other`."""

    world_size = 2

    def __init__(self, other: nn.Module) -> None:
        self.other = other

    def all_gather_object(self, value: Any) -> list[Any]:
        if not isinstance(value, list):  # what both say alike
            return [value, value]
        digests: list[Any] = []
        alone = SingleProcess()
        alone.all_gather_object = lambda digest: digests.append(digest) or [digest]  # type: ignore[method-assign,func-returns-value]
        check_replicas(SimpleNamespace(zero_stage=1, module=self.other, communicator=alone))  # type: ignore[arg-type]
        return [value, *digests]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_on_one_rank_is_seen(dtype: torch.dtype) -> None:
    mine, other = model().to(dtype), model().to(dtype)
    engine: Any = SimpleNamespace(zero_stage=1, module=mine, communicator=WithOther(other))
    check_replicas(engine)
    with torch.no_grad():
        weight = next(other[1].parameters()).view(torch.int16)
        weight[2] ^= 1
    with pytest.raises(UserError, match="the weights of rank 1 are no longer those of rank 0"):
        check_replicas(engine)
