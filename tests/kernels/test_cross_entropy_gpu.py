"""Cross-entropy on a GPU: errors, equal bits in two runs, memory, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from tests.ops.comparing import run
from unimo_ds.ops.cross_entropy import tied_cross_entropy
from unimo_ds.ops.native import cross_entropy as native

pytestmark = pytest.mark.gpu


def random_problem(num_rows: int, num_words: int, size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows + num_words)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).cuda() for shape in ((num_rows, size), (num_words, size), (num_words,))
    )
    targets = torch.randint(0, num_words, (num_rows,), generator=generator).cuda()
    return [hidden, weight / 4, bias], targets


@pytest.mark.parametrize("rows_of_a_chunk", [None, 100])
@pytest.mark.parametrize(
    ("num_rows", "num_words", "smoothing", "is_exact"),
    [
        (1, 50265, 0.0, True),
        (9, 5, 0.1, True),
        (403, 50264, 0.0, True),
        (403, 50265, 0.1, True),
        (403, 50265, 0.0, False),
        (1200, 1030, 0.1, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_native_equals_fp64_and_itself(monkeypatch, dtype, num_rows, num_words, smoothing, is_exact, rows_of_a_chunk):
    """is_exact: 16 bits can hold the logits, so that few rows are no matter of luck."""
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    if rows_of_a_chunk:
        monkeypatch.setattr(native, "MOST_KEPT", 0)
        monkeypatch.setattr(native, "CHUNK", rows_of_a_chunk * 2 * (num_words + 7))
    inputs, targets = random_problem(num_rows, num_words, 64)
    if is_exact:
        inputs = [inputs[0].sign(), (inputs[1] * 16).clamp(-4, 4).round() / 4, (inputs[2] * 4).round() / 4]
    inputs = [tensor.to(dtype).double() for tensor in inputs]

    def call(path):
        return lambda *tensors: tied_cross_entropy(*tensors, targets, smoothing=smoothing, path=path)[0]

    exact, exact_gradients = run(call("reference"), inputs, torch.float64)
    (other, other_gradients), (found, gradients), (again, gradients_again) = (
        run(call(path), inputs, dtype) for path in ("reference", "native", "native")
    )
    assert torch.equal(found, again)
    assert all(torch.equal(one, two) for one, two in zip(gradients, gradients_again, strict=True))
    # Plain code takes all rows at once; a table's gradient that is rounded after each chunk may lose as much again in each.
    factor = 3 if rows_of_a_chunk is None else 6
    quadruples = [
        (found, other, exact, 2),
        *zip(gradients, other_gradients, exact_gradients, [factor] * 3, strict=True),
    ]
    for one, two, truth, times in quadruples:
        floor = torch.finfo(one.dtype).eps * float(truth.abs().max())
        error = float((one.double() - truth).abs().max())
        assert error <= times * float((two.double() - truth).abs().max()) + floor


def test_who_is_correct_equals_the_highest_logit():
    inputs, _ = random_problem(500, 50265, 64)
    low = [tensor.half() for tensor in inputs]
    logits = (low[0] @ low[1].T).float() + low[2].float()
    best = logits.argmax(-1)
    _, is_correct = tied_cross_entropy(*low, best, path="native")
    # The product may be rounded otherwise here and there: the target then shares the first place.
    assert is_correct.float().mean() > 0.98
    _, is_correct = tied_cross_entropy(*low, logits.argmin(-1), path="native")
    assert not is_correct.any()


def test_the_benchmarks_case_takes_little_memory():
    """Kept logits 227 MiB, gradients of the table and the hidden states 77: what a compiler's code takes for the same."""
    dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    inputs, targets = random_problem(2368, 50265, 768)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    upstream = torch.randn(2368).cuda()

    def both() -> None:
        losses, _ = tied_cross_entropy(*leaves, targets, tells_correct=False, path="native")
        torch.autograd.grad(losses, leaves, upstream)

    both()  # cuBLAS takes its workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    assert (torch.cuda.max_memory_allocated() - before) / 2**20 <= 306


@pytest.mark.parametrize("is_kept", [True, False])
def test_cuda_graphs_hold_both_passes(monkeypatch, is_kept):
    if not is_kept:
        monkeypatch.setattr(native, "MOST_KEPT", 0)
        monkeypatch.setattr(native, "CHUNK", 100 * 2 * 1032)
    inputs, targets = random_problem(220, 1030, 64)
    leaves = [tensor.half().requires_grad_() for tensor in inputs]

    def both():
        losses, is_correct = tied_cross_entropy(*leaves, targets, path="native")
        return losses, is_correct, *torch.autograd.grad(losses.sum(), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [tensor.detach().clone() for tensor in both()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
