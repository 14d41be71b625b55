"""Cross-entropy in chunks against all logits at once."""

from __future__ import annotations

import pytest
import torch

from tests.ops.comparing import DTYPES, assert_within_budget
from unimo_ds.ops import cross_entropy
from unimo_ds.ops.cross_entropy import tied_cross_entropy

SIZE, VOCABULARY = 16, 37


def random_problem(num_rows: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    shapes = ((num_rows, SIZE), (VOCABULARY, SIZE), (VOCABULARY,))
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return inputs, torch.randint(0, VOCABULARY, (num_rows,), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1 << 22, VOCABULARY * 4, 1])
@pytest.mark.parametrize("num_rows", [0, 1, 11])
@pytest.mark.parametrize(("smoothing", "multiple"), [(0.0, 1), (0.1, 1), (0.0, 8), (0.1, 8)])
def test_chunked_equals_reference(num_rows, chunk, dtype, smoothing, multiple, monkeypatch):
    """multiple: of the table's rows, as GPUs want it; more rows than words change nothing."""
    monkeypatch.setattr(cross_entropy, "_CHUNK_LOGITS", chunk)
    monkeypatch.setitem(cross_entropy._MULTIPLE_OF_ROWS, "cpu", multiple)
    inputs, targets = random_problem(num_rows)
    assert all(rows.stop - rows.start <= max(1, chunk // VOCABULARY) for rows in cross_entropy._chunks(*inputs[:2]))

    def call(path):
        return lambda *inputs: tied_cross_entropy(*inputs, targets, smoothing=smoothing, path=path)[0]

    assert_within_budget(call("chunked"), call("reference"), inputs, dtype)


def test_is_correct_says_whether_the_target_wins():
    (hidden, weight, bias), _ = random_problem(11)
    best = (hidden @ weight.T + bias).argmax(-1)
    for path in ("chunked", "reference"):
        _, is_correct = tied_cross_entropy(hidden, weight, bias, best, path=path)
        assert is_correct.all()
        _, is_correct = tied_cross_entropy(hidden, weight, bias, (best + 1) % VOCABULARY, path=path)
        assert not is_correct.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_a_nearly_certain_word_is_not_lost(dtype):
    """p - 1 of p = 0.9999: low precision holds the difference, not the two."""
    (hidden, weight, _), targets = random_problem(1)
    hidden, weight = torch.zeros_like(hidden).to(dtype), torch.zeros_like(weight).to(dtype)
    bias = torch.zeros(VOCABULARY, dtype=dtype).index_fill(0, targets, 13.0).requires_grad_()
    losses, _ = tied_cross_entropy(hidden, weight, bias, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), bias)
    expected = -36 / (36 + torch.tensor(13.0, dtype=torch.float64).exp())
    assert float(gradient[targets]) == pytest.approx(float(expected), rel=5e-3)


@pytest.mark.parametrize("path", ["chunked", "reference"])
def test_who_is_correct_is_told_where_it_is_asked_for(path):
    inputs, targets = random_problem(3)
    told, untold = (tied_cross_entropy(*inputs, targets, tells_correct=tells, path=path) for tells in (True, False))
    assert untold[1] is None
    assert torch.equal(told[0], untold[0])


def test_losses_are_fp32_in_low_precision():
    inputs, targets = random_problem(3)
    losses, is_correct = tied_cross_entropy(*(tensor.bfloat16() for tensor in inputs), targets)
    assert losses.dtype == torch.float32
    assert is_correct.dtype == torch.bool
