"""Cross-entropy by the kernels' own sources run on the CPU: errors, chunks, ties, graphs taken twice, tracing, refusals."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from tests.ops.comparing import assert_within_budget
from unimo_ds.ops.cross_entropy import tied_cross_entropy
from unimo_ds.ops.native import build, library
from unimo_ds.ops.native import cross_entropy as native
from unimo_ds.utils.errors import UserError

SIZE = 16


def random_problem(num_rows: int, num_words: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows + num_words)
    shapes = ((num_rows, SIZE), (num_words, SIZE), (num_words,))
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return inputs, torch.randint(0, num_words, (num_rows,), generator=generator)


def exact_problem(num_rows: int, num_words: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Whose logits 16 bits can hold, so that few rows are no matter of luck: no rounding of a logit hides what follows it."""
    (hidden, weight, bias), targets = random_problem(num_rows, num_words)
    return [hidden.sign(), (weight * 4).clamp(-4, 4).round() / 4, (bias * 4).round() / 4], targets


def losses(path, targets, smoothing=0.0):
    return lambda *inputs: tied_cross_entropy(*inputs, targets, smoothing=smoothing, path=path)[0]


@pytest.fixture
def on_host(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")


def set_chunks(monkeypatch, rows: int | None, num_words: int) -> None:
    if rows:
        monkeypatch.setattr(native, "MOST_KEPT", 0)
        monkeypatch.setattr(native, "CHUNK", rows * 2 * (num_words + 7))


@pytest.mark.parametrize(("architecture", "dtype"), [("sm_70", torch.float16), ("sm_80", torch.bfloat16)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_words", [1, 7, 64, 2061])
@pytest.mark.parametrize(("num_rows", "rows_of_a_chunk"), [(0, None), (1, None), (11, None), (11, 4), (11, 1)])
def test_native_equals_reference(monkeypatch, num_rows, rows_of_a_chunk, num_words, smoothing, architecture, dtype):
    monkeypatch.setenv(library.ON_HOST, architecture)
    set_chunks(monkeypatch, rows_of_a_chunk, num_words)
    inputs, targets = exact_problem(num_rows, num_words)
    assert_within_budget(losses("native", targets, smoothing), losses("reference", targets, smoothing), inputs, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows_of_a_chunk", [None, 40])
def test_native_equals_reference_where_logits_are_rounded(on_host, monkeypatch, rows_of_a_chunk, dtype):
    set_chunks(monkeypatch, rows_of_a_chunk, 301)
    inputs, targets = random_problem(70, 301)
    assert_within_budget(losses("native", targets), losses("reference", targets), inputs, dtype)


def test_of_equal_logits_the_first_is_the_highest(on_host):
    """Also where the others are in another slab of columns."""
    bias = torch.zeros(5000).index_fill(0, torch.tensor([10, 12, 4000]), 3.0).bfloat16()
    hidden, weight = torch.zeros(4, SIZE).bfloat16(), torch.ones(5000, SIZE).bfloat16()
    _, is_correct = tied_cross_entropy(hidden, weight, bias, torch.tensor([10, 12, 4000, 11]), path="native")
    assert is_correct.tolist() == [True, False, False, False]


def test_who_is_correct_is_told_where_it_is_asked_for(on_host):
    inputs, targets = random_problem(9, 300)
    low = [tensor.bfloat16() for tensor in inputs]
    told, untold = (tied_cross_entropy(*low, targets, tells_correct=tells, path="native") for tells in (True, False))
    assert untold[1] is None
    assert torch.equal(told[0], untold[0])
    _, by_reference = tied_cross_entropy(*inputs, (inputs[0] @ inputs[1].T + inputs[2]).argmax(-1), path="reference")
    assert by_reference.all()
    best = (low[0].double() @ low[1].double().T + low[2].double()).argmax(-1)
    assert tied_cross_entropy(*low, best, path="native")[1].all()


def test_the_gradient_of_a_nearly_certain_word_is_not_lost(on_host):
    num_words, targets = 37, torch.tensor([36])
    hidden, weight = torch.zeros(1, SIZE).bfloat16(), torch.zeros(num_words, SIZE).bfloat16()
    bias = torch.zeros(num_words).bfloat16().index_fill(0, targets, 13.0).requires_grad_()
    (gradient,) = torch.autograd.grad(losses("native", targets)(hidden, weight, bias).sum(), bias)
    assert float(gradient[targets]) == pytest.approx(-36 / (36 + math.exp(13)), rel=5e-3)


def test_words_that_a_bias_forbids_have_no_part(on_host):
    (hidden, weight, bias), targets = random_problem(5, 40)
    allowed, targets = 24, targets % 24
    low = [tensor.bfloat16() for tensor in (hidden, weight, bias)]
    forbidding = low[2].index_fill(0, torch.arange(allowed, 40), -torch.inf)
    found = losses("native", targets)(low[0], low[1], forbidding)
    expected = losses("native", targets)(low[0], low[1][:allowed], low[2][:allowed])
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_graph_may_be_gone_through_twice(on_host, monkeypatch, is_kept):
    """Slopes take the place of kept logits, so the second pass has to make them again."""
    if not is_kept:
        monkeypatch.setattr(native, "MOST_KEPT", 0)
    inputs, targets = random_problem(6, 70)
    leaves = [tensor.bfloat16().requires_grad_() for tensor in inputs]
    total = losses("native", targets)(*leaves).sum()
    first, second = (torch.autograd.grad(total, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_parameters_that_begin_anywhere_in_a_flat_buffer_are_taken(on_host):
    (hidden, weight, bias), targets = random_problem(3, 40)
    flat = torch.cat([torch.zeros(1), weight.flatten(), bias]).bfloat16()
    views = [flat[1 : 1 + weight.numel()].view_as(weight), flat[1 + weight.numel() :]]
    assert all(view.data_ptr() % 16 for view in views)
    call = losses("native", targets)
    found = call(hidden.bfloat16(), *(view.requires_grad_() for view in views))
    assert torch.equal(found, call(hidden.bfloat16(), *(view.detach().clone() for view in views)))
    found.sum().backward()


@pytest.mark.parametrize("target", [-100, 40])
def test_a_target_that_is_no_word_has_no_loss(on_host, target):
    inputs, targets = random_problem(3, 40)
    targets[1] = target
    found, is_correct = tied_cross_entropy(*(tensor.bfloat16() for tensor in inputs), targets, path="native")
    assert found.isnan().tolist() == [False, True, False]
    assert not is_correct[1]


def test_fields_match_the_sources():
    size = library.load(build.build_host("sm_80")).unimo_cross_entropy_argument_bytes()
    assert ctypes.sizeof(native.CrossEntropyArguments) == size


def test_compiled_code_gives_the_same(on_host):
    inputs, targets = random_problem(5, 40)
    leaves = [tensor.bfloat16().requires_grad_() for tensor in inputs]

    def call(hidden, weight, bias):
        return native.tied_cross_entropy(hidden, weight, bias, targets, smoothing=0.0, tells_correct=False)[0].sum()

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for one, two in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(call(*leaves), leaves), strict=True
    ):
        assert torch.equal(one, two)


def test_logits_are_kept_where_they_fit_one_chunk():
    with torch.device("meta"):
        weight, bias = torch.empty(50265, 8, dtype=torch.float16), torch.empty(50265, dtype=torch.float16)
        kept, made_again = (
            torch.ops.unimo.cross_entropy_forward(
                torch.empty(rows, 8, dtype=torch.float16),
                weight,
                bias,
                torch.empty(rows, dtype=torch.int64),
                0.0,
                False,
            )[3]
            for rows in (2368, 3000)
        )
    assert kept.shape == (2368, 50272)
    assert made_again.shape == (0, 50272)


@pytest.mark.parametrize(
    ("dtypes", "words"),
    [([torch.float32] * 3, "float16 and bfloat16"), ([torch.float16, torch.float16, torch.float32], "its bias")],
)
def test_what_the_kernels_cannot_take_is_refused_by_name(on_host, dtypes, words):
    inputs, targets = random_problem(3, 9)
    with pytest.raises(UserError, match=words):
        losses("native", targets)(*(tensor.to(dtype) for tensor, dtype in zip(inputs, dtypes, strict=True)))
