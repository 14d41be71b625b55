"""The second device refuses what a GPU refuses, and allows what a GPU allows: one table, by `pytest -m gpu` against CUDA."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.models.test_unimo import training_batch
from unimo_ds.utils.moving import moved

HOST = torch.arange(12.0).view(3, 4)
ROWS, MASK, NUMBER = torch.tensor([0, 2]), HOST > 3, torch.tensor(2.0)

REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "numpy": lambda there: there.numpy(),
    "an array": lambda there: np.asarray(there),
    "addition": lambda there: there + HOST,
    "addition, the host first": lambda there: HOST + there,
    "into the host": lambda there: HOST.clone().add_(there),
    "a number into the host": lambda there: NUMBER.clone().add_(there[0, 0]),
    "concatenation": lambda there: torch.cat((there, HOST)),
    "a stack of numbers": lambda there: torch.stack((there[0, 0], NUMBER)),
    "a product": lambda there: there @ HOST.T,
    "the host by indices": lambda there: HOST[ROWS.to(there.device)],
    "rows into indices": lambda there: there.index_put((ROWS,), HOST[ROWS]),
    "index_select": lambda there: there.index_select(0, ROWS),
    "gather": lambda there: there.gather(0, ROWS[None]),
    "scatter": lambda there: there.scatter(0, ROWS[None], 1.0),
    "index_fill": lambda there: there.index_fill(0, ROWS, 1.0),
    "index_add": lambda there: there.index_add(0, ROWS, there[:2]),
    "an embedding": lambda there: functional.embedding(ROWS, there),
    "a mask": lambda there: there.masked_fill(MASK, 0.0),
    "a choice": lambda there: torch.where(MASK, there, 0.0),
    "a comparison": lambda there: torch.equal(there, HOST),
    "targets": lambda there: functional.cross_entropy(there, torch.tensor([0, 1, 2])),
    "weights": lambda there: functional.layer_norm(there, (4,), HOST[0], HOST[0]),
    "repeats": lambda there: there.repeat_interleave(torch.tensor([1, 2, 1]), 0),
    "a generator": lambda there: torch.rand(3, device=there.device, generator=torch.Generator()),
}
ALLOWED: dict[str, Callable[[torch.Tensor], object]] = {
    "copies": lambda there: (there.to("cpu"), HOST.to(there.device), torch.empty(3, 4).copy_(there)),
    "numbers out": lambda there: [there[0, 1].item(), there.tolist(), bool((there > 3).any())],
    "a list in": lambda there: torch.tensor([1.0, 2.0], device=there.device),
    "a number": lambda there: (there + NUMBER, NUMBER * there),
    "a number chosen": lambda there: torch.where(there > 3, there, NUMBER),
    "a number put": lambda there: there.index_put((ROWS,), NUMBER),
    "numbers of Python": lambda there: (there.half() * 2.0, there // 2, torch.isin(there, 3.0), there[0, 0] * 2.0),
    "indices of the host": lambda there: (there[ROWS], there[MASK], there[:, ROWS[:1]]),
    "a row of the host assigned": lambda there: there.clone().__setitem__(0, HOST[1]),
    "views": lambda there: (
        there.T.reshape(-1),
        there.view(torch.int32),
        there[:, 1:].unfold(1, 2, 1),
        there.expand(2, 3, 4),
    ),
    "new ones": lambda there: (torch.arange(5, device=there.device), there.new_zeros(2), torch.full_like(there, 2.0)),
    "results given": lambda there: (torch.mul(there, 2, out=there.new_empty(0)), there.cumsum(0)),
    "unknown sizes": lambda there: (there.nonzero(), there.unique(), there.masked_select(there > 3)),
    "tuples": lambda there: (*there.split([1, 2]), *there.topk(2), *torch.std_mean(there, 0)),
}


def on_host(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    return tuple(map(on_host, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(device: torch.device, name: str) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[name](HOST.to(device))


@pytest.mark.parametrize("name", ALLOWED)
def test_it_allows(device: torch.device, name: str) -> None:
    torch.testing.assert_close(on_host(ALLOWED[name](HOST.to(device))), ALLOWED[name](HOST))


def test_what_changes_in_place_is_changed(device: torch.device) -> None:
    there = HOST.to(device)
    there[1:, 0] = 7
    there.view(-1)[3:5].mul_(2)
    torch._foreach_add_([there[0], there[2]], 1.0)
    here = HOST.clone()
    here[1:, 0] = 7
    here.view(-1)[3:5].mul_(2)
    here[0] += 1
    here[2] += 1
    assert torch.equal(there.cpu(), here)
    assert there.data_ptr() != HOST.data_ptr()


def test_gradients_are_on_the_device(device: torch.device) -> None:
    layer = torch.nn.Linear(4, 2, device=device)
    layer(HOST.to(device)).square().sum().backward()
    assert layer.weight.grad.device == layer.weight.device == device
    expected = 2 * (HOST @ layer.weight.detach().cpu().T + layer.bias.detach().cpu()).T @ HOST
    torch.testing.assert_close(layer.weight.grad.cpu(), expected)


def test_a_batch_there_and_back_is_the_same(device: torch.device) -> None:
    batch = training_batch(6)
    there = batch.to(device)
    assert there.contrast is batch.contrast
    assert there.token_ids.device == device
    back = moved(there, torch.device("cpu"))
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(there, name).device == device
            assert torch.equal(getattr(back, name), value), name
