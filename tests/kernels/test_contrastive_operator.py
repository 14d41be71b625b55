"""The contrastive operators with the kernels' own sources run on the CPU: errors, gradients, tracing, refusals."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.kernels.shared_scores import CASES, make_keys, make_vectors, plain
from tests.ops.comparing import assert_within_budget
from unimo_ds.ops.grouping import group
from unimo_ds.ops.native import build, contrastive, library, pairs

FORMATS = [("sm_70", torch.float16), ("sm_80", torch.bfloat16)]


def of_finite(logs: torch.Tensor) -> torch.Tensor:
    return torch.where(logs.isinf(), 0.0, logs)


@pytest.mark.parametrize(("architecture", "dtype"), FORMATS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_log_sum_exps_equal_the_formula(monkeypatch, name, both, architecture, dtype):
    monkeypatch.setenv(library.ON_HOST, architecture)
    monkeypatch.setattr(contrastive, "SMALL_CHUNK", (64, 1024))
    case, keys = CASES[name], make_keys(CASES[name])
    rows, columns = make_vectors(case)
    inverse = torch.tensor(1 / case.temperature, dtype=torch.float64)

    def path(rows, columns, inverse):
        logs = contrastive.log_sum_exps(rows, columns, inverse.float(), keys, both=both)
        return torch.cat((of_finite(logs.rows), of_finite(logs.columns)))

    def reference(rows, columns, inverse):
        logs = plain(rows, columns, inverse, keys)
        wanted = torch.cat((of_finite(logs[0]), of_finite(logs[2]))) if both else of_finite(logs[0])
        return wanted.float() if wanted.dtype == dtype else wanted

    assert_within_budget(path, reference, [rows, columns, inverse], dtype)
    with torch.no_grad():
        narrow = [vectors.to(dtype) for vectors in (rows, columns)]
        found = contrastive.log_sum_exps(*narrow, inverse.float(), keys, both=both)
        exact = plain(*(vectors.double() for vectors in narrow), inverse, keys)
    torch.testing.assert_close(found.best_rows.double(), exact[1], rtol=1e-5, atol=1e-6)
    if both:
        torch.testing.assert_close(found.best_columns.double(), exact[3], rtol=1e-5, atol=1e-6)
        assert torch.equal(found.columns.isinf(), exact[2].isinf())
    assert torch.equal(found.rows.isinf(), exact[0].isinf())


@pytest.mark.parametrize(
    ("count", "both", "chunk"),
    [
        (32_768, True, contrastive.SMALL_CHUNK),
        (65_536, True, contrastive.LARGE_CHUNK),
        (131_072, False, contrastive.SMALL_CHUNK),
    ],
)
def test_rectangles_are_large_where_their_buffer_is_not_most_of_the_memory(count, both, chunk):
    vectors = torch.empty(count, 768, dtype=torch.bfloat16, device="meta")
    assert contrastive.chunk_of(vectors, vectors, both=both) == chunk


def test_python_and_the_kernels_agree_on_the_arguments():
    size = library.load(build.build_host("sm_80")).unimo_contrastive_argument_bytes
    structures = (contrastive.BlockArguments, pairs.PairArguments, pairs.SegmentArguments)
    assert [size(which) for which in range(3)] == [ctypes.sizeof(structure) for structure in structures]


PAIR_SHAPES = {"none": (3, 4, 16, 0), "a few": (5, 9, 40, 30), "wide": (7, 6, 1030, 12)}


def pair_inputs(name: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    num_left, num_right, size, count = PAIR_SHAPES[name]
    generator = torch.Generator().manual_seed(size)
    vectors = [
        torch.randn(n, size, generator=generator, dtype=torch.float64) / size**0.5 for n in (num_left, num_right)
    ]
    rows = [torch.randint(0, n, (count,), generator=generator) for n in (num_left - 1, num_right)]
    return vectors, rows[0], rows[1]


@pytest.mark.parametrize(("architecture", "dtype"), FORMATS)
@pytest.mark.parametrize("name", PAIR_SHAPES)
def test_pair_scores_equal_the_formula(monkeypatch, name, architecture, dtype):
    monkeypatch.setenv(library.ON_HOST, architecture)
    vectors, left_rows, right_rows = pair_inputs(name)

    def path(left, right):
        return pairs.pair_scores(left, right, group(left_rows, len(left) - 1), group(right_rows, len(right)))

    def reference(left, right):
        scores = (left[left_rows] * right[right_rows]).sum(-1)
        return scores.float() if dtype == left.dtype else scores

    assert_within_budget(path, reference, vectors, dtype)


def test_segments_equal_the_formula(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(90, generator=generator) * 30
    segment = torch.randint(0, 5, (90,), generator=generator) * 2  # those between are empty

    def reference(values):
        logs = [torch.logsumexp(values[segment == index], 0) for index in range(10)]
        return torch.where(torch.arange(10) % 2 == 0, torch.stack(logs), 0.0)

    def path(values):
        logs = pairs.segment_log_sum_exp(values, group(segment, 10))
        assert bool(logs[1::2].isneginf().all())
        return of_finite(logs)

    assert_within_budget(path, reference, [values.double()], torch.float32)
    assert bool(pairs.segment_log_sum_exp(values[:0], group(segment[:0], 3)).isneginf().all())


def test_log_sum_exp_of_columns_equals_the_formula(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(2)) * 30
    values[0, 2] = values[2, 2] = values[1, 3] = -torch.inf

    def reference(values):
        return torch.logsumexp(values, 0)

    assert_within_budget(pairs.log_sum_exp, reference, [values.double()], torch.float32)
    nothing = torch.full((2, 3), -torch.inf, requires_grad=True)
    logs = pairs.log_sum_exp(nothing)
    assert bool(logs.isneginf().all())
    assert not torch.autograd.grad(logs, nothing, torch.ones(3))[0].any()


def test_nan_is_no_missing_score(monkeypatch):
    """Where every score of a sum is nan, so is its logarithm: -inf would leave it out, and the loss would look sound."""
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    values = torch.tensor([torch.nan, torch.nan, 1.0, -torch.inf])
    assert pairs.segment_log_sum_exp(values, group(torch.tensor([0, 1, 1, 2]), 3)).isnan().tolist() == [
        True,
        True,
        False,
    ]
    stacked = torch.stack((values, torch.full((4,), -torch.inf))).requires_grad_()
    logs = pairs.log_sum_exp(stacked)
    assert logs.isnan().tolist() == [True, True, False, False]
    assert torch.autograd.grad(logs.sum(), stacked)[0][0].isnan().tolist() == [True, True, False, False]


def test_fp32_vectors_are_rounded_to_fp16_and_get_fp32_gradients(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    keys = make_keys(CASES["one column"])
    wide = [vectors.float().requires_grad_() for vectors in make_vectors(CASES["one column"])]
    narrow = [vectors.detach().half().requires_grad_() for vectors in wide]
    inverse, results = torch.tensor(14.0), []
    for vectors in (wide, narrow):
        logs = contrastive.log_sum_exps(*vectors, inverse, keys, both=True)
        total = (
            of_finite(logs.rows).sum()
            + logs.columns.sum()
            + pairs.pair_scores(*vectors, *[group(torch.zeros(2).long(), 1)] * 2).sum()
        )
        results.append((total.detach(), *torch.autograd.grad(total, vectors)))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other.float(), rtol=2e-3, atol=1e-6)


def test_segments_without_lists_trace_and_differentiate(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    values, nothing = torch.ones(2, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    torch.library.opcheck(torch.ops.unimo.contrastive_segments.default, (values, nothing, nothing, nothing, 1))


def test_the_temperature_is_not_rounded_to_the_vectors_format(monkeypatch):
    """Peers that scale bf16 vectors by 1 / 0.07 work at 1 / 14.3125: at 65,536 candidates a loss of 1.394 instead of 1.408."""
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    case = CASES["tile edges"]
    vectors, keys = [vectors.bfloat16() for vectors in make_vectors(case)], make_keys(case)
    exact, rounded = torch.tensor(1 / 0.07), torch.tensor(1 / 0.07).bfloat16()
    assert float(rounded) == 14.3125
    found = of_finite(contrastive.log_sum_exps(*vectors, exact, keys, both=False).rows).double()
    truth, other = (
        of_finite(plain(*(tensor.double() for tensor in vectors), inverse.double(), keys)[0])
        for inverse in (exact, rounded)
    )
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-5)
    assert float((other - truth).abs().mean()) > 1e-3
