"""Every torch operator of the kernels: schema, shapes for tracing, derivative and dynamic shapes, by torch's own check."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.shared_scores import CASES, make_keys, make_vectors
from unimo_ds.ops.grouping import group
from unimo_ds.ops.layout import make_layout
from unimo_ds.ops.native import attention, bias_gelu, contrastive, cross_entropy, dropout_norm, library, pairs


class Recorder(TorchDispatchMode):
    """Our operators as they are called, with copies of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[object, ...]] = {}

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator.namespace == "unimo":
            copies = [one.detach().clone() if isinstance(one, torch.Tensor) else one for one in arguments]
            self.calls.setdefault(operator._opname, tuple(copies))
        return operator(*arguments, **(options or {}))


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float16).requires_grad_()


def call_all() -> None:
    """Each public function forward and backward."""
    keys = torch.arange(5, dtype=torch.int32)
    segments = group(torch.tensor([0, 1, 1, 3, 0]), 5)
    case = CASES["tile edges"]
    rows, columns = (vectors.half().requires_grad_() for vectors in make_vectors(case))
    inverse = torch.tensor(1 / case.temperature, requires_grad=True)
    results = [
        attention.attention(leaf(5, 3, 1, 64), make_layout([3, 2]), probability=0.1, site=2),
        bias_gelu.bias_gelu(leaf(5, 16), leaf(16)),
        torch.ops.unimo.dropout(leaf(5, 16), keys, 0.1, 3),
        dropout_norm.dropout_add_layer_norm(leaf(5, 16), leaf(5, 16), leaf(16), leaf(16), keys, 0.1, 3, 1e-5),
        cross_entropy.tied_cross_entropy(leaf(5, 16), leaf(11, 16), leaf(11), torch.arange(5), 0.1, True)[0],
        contrastive.log_sum_exps(rows, columns, inverse, make_keys(case), both=True).rows,
        pairs.segment_log_sum_exp(pairs.pair_scores(leaf(5, 16), leaf(5, 16), segments, segments), segments),
    ]
    for result in results:
        result.sum().backward()


def checks(name: str) -> list[str]:
    """What torch is to check. Its graph of `cross_entropy_forward` would return the kept logits, which no caller has: backward
    writes over them."""
    wanted = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    return wanted[:-1] if name == "cross_entropy_forward" else wanted


def test_every_operator_passes_torchs_check(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    with Recorder() as recorder:
        call_all()
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("unimo::")}
    assert recorder.calls.keys() == names
    for name, arguments in recorder.calls.items():
        if not any(word in name for word in ("backward", "gradient")):
            for one in arguments:
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    one.requires_grad_()
        try:
            torch.library.opcheck(getattr(torch.ops.unimo, name).default, arguments, test_utils=checks(name))
        except Exception as error:
            pytest.fail(f"{name}: {error}")
