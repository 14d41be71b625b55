"""A second derivative is right, or refused: on every path of every op that has a backward pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tests.kernels.test_calling import OPERATORS
from unimo_ds.ops.attention import packed_attention
from unimo_ds.ops.contrastive import Candidates, functions_of
from unimo_ds.ops.cross_entropy import tied_cross_entropy
from unimo_ds.ops.dropout import dropout
from unimo_ds.ops.dropout_norm import dropout_add_layer_norm
from unimo_ds.ops.layout import make_layout
from unimo_ds.ops.linear import _WideLinear
from unimo_ds.ops.native import library
from unimo_ds.ops.ring import RingCandidates
from unimo_ds.ops.score_blocks import Keys, log_sum_exps
from unimo_ds.utils.communicator import ProcessGroup, SingleProcess

LAYOUT, POSITION_KEYS, TARGETS = make_layout([3, 2]), torch.arange(5, dtype=torch.int32), torch.arange(5)
NUMBERS, NO_ITEMS = torch.arange(3)[:, None].expand(3, 4), torch.zeros(3, 0, dtype=torch.int64)
KEYS = Keys(NUMBERS * torch.tensor([0, 1, 1, 1]), NUMBERS * torch.tensor([0, 1, 1, 1]), NO_ITEMS, NO_ITEMS)
REFUSED = "the second derivative of this operator is not implemented"


def round_a_ring(images: torch.Tensor, texts: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    mine, theirs = Candidates(images, KEYS.rows), Candidates(texts, KEYS.columns)
    ring = RingCandidates(mine, theirs, NO_ITEMS, NO_ITEMS, text_counts=[3], communicator=SingleProcess())
    return ring.log_sum_exps(inverse, functions_of(images, "tiled"))[0]


RIGHT: dict[str, tuple[Callable[..., torch.Tensor], Sequence[tuple[int, ...]]]] = {
    "attention": (lambda x: packed_attention(x, LAYOUT, path="reference"), [(5, 3, 1, 2)]),
    "dropout": (lambda x: dropout(x, POSITION_KEYS, probability=0.3, site=1, path="plain"), [(5, 4)]),
    "products": (_WideLinear.apply, [(5, 4), (3, 4), (3,)]),
}
NOT: dict[str, tuple[Callable[..., torch.Tensor], Sequence[tuple[int, ...]]]] = {
    "attention": (lambda x: packed_attention(x, LAYOUT, path="bucketed"), [(5, 3, 1, 2)]),
    "norm": (
        lambda *x: dropout_add_layer_norm(*x, POSITION_KEYS, probability=0.3, site=1, epsilon=1e-5, path="fused"),
        [(5, 4), (5, 4), (4,), (4,)],
    ),
    "cross-entropy": (lambda *x: tied_cross_entropy(*x, TARGETS, path="chunked")[0], [(5, 4), (7, 4), (7,)]),
    "scores": (lambda a, b, c: log_sum_exps(a, b, c, KEYS, both=True).rows, [(3, 4), (3, 4), ()]),
    "ring": (round_a_ring, [(3, 4), (3, 4), ()]),
}


def leaves(shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.rand(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", RIGHT)
def test_it_is_right(name: str) -> None:
    call, shapes = RIGHT[name]
    coarse = {"eps": 1e-2, "atol": 1e-3} if name == "products" else {}  # in fp32, and linear in each input
    assert torch.autograd.gradgradcheck(call, leaves(shapes), **coarse)


def differentiate_twice(call: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    found = torch.autograd.grad(call(*inputs).sum(), inputs, create_graph=True)
    assert all(one.requires_grad for one in found)
    sum(one.float().square().sum() for one in found).backward()


@pytest.mark.parametrize("name", NOT)
def test_it_is_refused(name: str) -> None:
    call, shapes = NOT[name]
    with pytest.raises(RuntimeError, match=REFUSED):
        differentiate_twice(call, leaves(shapes))


def test_it_is_refused_across_ranks() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match=REFUSED):
            differentiate_twice(lambda rows: ProcessGroup().all_gather_rows(rows, [3]).square(), leaves([(3, 4)]))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", OPERATORS)
def test_it_is_refused_by_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    shape, call = OPERATORS[name]
    value = torch.ones(shape).half().requires_grad_()
    if name == "dropout":  # a product with numbers that do not depend on its input
        (first,) = torch.autograd.grad(call(value).square().sum(), value, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), value)
        assert torch.equal(second, first)  # of x squared at 1
        return
    with pytest.raises(RuntimeError, match=REFUSED):
        differentiate_twice(call, [value])
