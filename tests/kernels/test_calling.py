"""Operators of the kernels wherever torch may call them: they pass its dispatcher only where someone there is to see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.kernels.shared_scores import CASES, make_keys, make_vectors
from unimo_ds.ops.grouping import group
from unimo_ds.ops.layout import make_layout
from unimo_ds.ops.native import attention, bias_gelu, contrastive, cross_entropy, dropout_norm, library, pairs

LAYOUT, KEYS, TARGETS = make_layout([3, 2]), torch.arange(5, dtype=torch.int32), torch.arange(5)
SEGMENTS, BIAS = group(torch.tensor([0, 1, 1, 3, 0]), 5), torch.linspace(-1, 1, 16).half()
CASE = CASES["tile edges"]
VECTORS = [vectors.half() for vectors in make_vectors(CASE)]

OPERATORS: dict[str, tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    "attention": ((5, 3, 1, 64), lambda x: attention.attention(x, LAYOUT, probability=0.1, site=2)),
    "bias and gelu": ((5, 16), lambda x: bias_gelu.bias_gelu(x, BIAS)),
    "dropout": ((5, 16), lambda x: dropout_norm.dropout(x, KEYS, 0.1, 3)),
    "norm": ((5, 16), lambda x: dropout_norm.dropout_add_layer_norm(x, x, BIAS, BIAS, KEYS, 0.1, 3, 1e-5)),
    "cross-entropy": (
        (5, 16),
        lambda x: cross_entropy.tied_cross_entropy(x, VECTORS[0].new_ones(11, 16), BIAS[:11], TARGETS, 0.1, True)[0],
    ),
    "pair scores": ((5, 16), lambda x: pairs.pair_scores(x, x, SEGMENTS, SEGMENTS)),
    "segments": ((5,), lambda x: pairs.segment_log_sum_exp(x, SEGMENTS)),
    "shared candidates": (
        tuple(VECTORS[0].shape),
        lambda x: contrastive.log_sum_exps(x, VECTORS[1], torch.tensor(9.0), make_keys(CASE), both=True).rows,
    ),
}


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ON_HOST, "sm_80")


@pytest.fixture(params=OPERATORS)
def called(request: pytest.FixtureRequest) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    shape, call = OPERATORS[request.param]
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).half(), call


def gradient(call: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    leaf = value.clone().requires_grad_()
    call(leaf).float().square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(
    "name", sorted(OPERATORS.keys() - {"shared candidates"})
)  # on the host its products are torch's own
def test_autocast_changes_nothing(name: str) -> None:
    shape, call = OPERATORS[name]
    value = torch.ones(shape).half()
    expected = call(value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(value), expected)


def test_without_gradients_and_with_gaps(called) -> None:
    value, call = called
    expected = call(value)
    with torch.inference_mode():
        assert torch.equal(call(value), expected)
    strided = value.new_empty((*value.shape, 2))
    strided[..., 0] = value
    assert torch.equal(call(strided[..., 0]), expected)
    assert torch.equal(gradient(call, strided[..., 0]), gradient(call, value))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed(called, reentrant: bool) -> None:
    value, call = called
    recomputed = gradient(lambda leaf: checkpoint(call, leaf, use_reentrant=reentrant), value)
    assert torch.equal(recomputed, gradient(call, value))


def test_shapes_alone(called) -> None:
    value, call = called
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = call(mode.from_tensor(value))
    assert (found.shape, found.dtype) == (call(value).shape, call(value).dtype)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_torch_script_holds_the_operator(called, with_gradients: bool) -> None:
    value, call = called
    with torch.set_grad_enabled(with_gradients):
        script = torch.jit.trace(call, (value,), check_trace=False)
    assert "unimo::" in str(script.graph)
    assert torch.equal(script(value * 0.5), call(value * 0.5))


def test_a_batch_of_calls_is_a_loop(called) -> None:
    value, call = called
    batch = torch.stack([value, value * 0.5])
    assert torch.equal(torch.vmap(call)(batch), torch.stack([call(one) for one in batch]))


def test_derivatives_of_torch_func_are_refused(called) -> None:
    value, call = called
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: call(x).float().sum())(value)


def test_position_keys_with_gaps() -> None:
    gaps = torch.stack((KEYS, -KEYS), 1)[:, 0]
    value = torch.ones(5, 16).half()
    for call in (
        dropout_norm.dropout,
        lambda x, keys, *rest: dropout_norm.dropout_add_layer_norm(x, x, BIAS, BIAS, keys, *rest, 1e-5),
    ):
        assert torch.equal(call(value, gaps, 0.5, 3), call(value, KEYS, 0.5, 3))
        found, expected = (
            gradient(lambda x, keys=keys, call=call: call(x, keys, 0.5, 3), value) for keys in (gaps, KEYS)
        )
        assert torch.equal(found, expected)
