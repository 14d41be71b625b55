"""The contrastive kernels on a GPU: errors, equal bits in two runs, no synchronisation with the host, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.shared_scores import CASES, Case, make_keys, make_vectors, plain
from tests.losses.test_contrastive import EVERY_ROLE, FORMS, make_table
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.losses.contrastive import contrastive_loss
from unimo_ds.ops.grouping import group
from unimo_ds.ops.native import contrastive, library, pairs
from unimo_ds.ops.score_blocks import Keys
from unimo_ds.utils.communicator import SingleProcess

pytestmark = pytest.mark.gpu
BIG = Case(num_rows=4700, num_columns=5100, size=768, groups=2, listed=3)


@pytest.fixture(autouse=True)
def _built():
    assert library.refusal(torch.zeros(1, dtype=torch.float16, device="cuda")) is None


def formats() -> list[torch.dtype]:
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return [torch.float16, torch.bfloat16] if capable else [torch.float16]


def differentiate(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, then gradients of an uneven sum over them."""
    total = sum(
        (torch.where(output.isinf(), 0.0, output) * torch.linspace(-1, 2, len(output), device=output.device)).sum()
        for output in outputs
    )
    return [output.detach() for output in outputs] + list(torch.autograd.grad(total, leaves))


def run_native(rows, columns, inverse, keys, both):
    leaves = [tensor.detach().cuda().requires_grad_() for tensor in (rows, columns, inverse.float())]
    logs = contrastive.log_sum_exps(*leaves, Keys(*(key.cuda() for key in keys)), both=both)
    return differentiate([logs.rows, logs.columns] if both else [logs.rows], leaves)


def run_plain(rows, columns, inverse, keys, both, device):
    leaves = [tensor.detach().to(device).requires_grad_() for tensor in (rows, columns, inverse)]
    logs = plain(*leaves, Keys(*(key.to(device) for key in keys)))
    return differentiate([logs[0], logs[2]] if both else [logs[0]], leaves)


def assert_close(found, other, truth, dtype, factors):
    for one, two, exact, factor in zip(found, other, truth, factors, strict=True):
        finite = exact.isfinite().cpu()
        errors = [(t.cpu().double() - exact.cpu())[finite].abs() for t in (one, two)]
        if finite.any():
            floor = torch.finfo(dtype).eps * float(exact.cpu()[finite].abs().max())
            assert float(errors[0].max()) <= factor * float(errors[1].max()) + floor


@pytest.mark.parametrize("dtype", formats())
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", [*CASES, "big"])
def test_log_sum_exps_equal_fp64_and_themselves(name, both, dtype):
    case = BIG if name == "big" else CASES[name]
    keys, inverse = make_keys(case), torch.tensor(1 / case.temperature, dtype=dtype).double()
    rows, columns = (vectors.to(dtype) for vectors in make_vectors(case))
    truth = run_plain(rows.double(), columns.double(), inverse, keys, both, "cuda")
    other = run_plain(rows, columns, inverse.to(dtype), keys, both, "cuda")
    found, again = (run_native(rows, columns, inverse, keys, both) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert_close(found, other, truth, dtype, [2] * (1 + both) + [3] * 3)


@pytest.mark.parametrize("dtype", formats())
def test_pairs_equal_fp64_and_themselves(dtype):
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(count, 1032, generator=generator).to(dtype) / 32 for count in (300, 2000))
    left_rows = torch.randint(0, 250, (5000,), generator=generator)
    right_rows = torch.randint(0, 2000, (5000,), generator=generator)

    def run(scores_of, segments_of, device, dtype):
        leaves = [vectors.detach().to(device, dtype).requires_grad_() for vectors in (left, right)]
        rows = [index.to(device) for index in (left_rows, right_rows)]
        scores = scores_of(*leaves, *rows)
        return differentiate([scores, segments_of(scores * 14.0, rows[0], 300)], leaves)

    def native_scores(left, right, left_rows, right_rows):
        return pairs.pair_scores(left, right, group(left_rows, 250), group(right_rows, 2000))

    def eager_scores(left, right, left_rows, right_rows):
        return (left[left_rows] * right[right_rows]).sum(-1)

    def eager_segments(values, segment, count):
        padded = torch.full((count, len(values)), -torch.inf, dtype=values.dtype, device=values.device)
        padded[segment, torch.arange(len(values), device=values.device)] = values
        return torch.logsumexp(torch.cat((padded[:250], padded.new_zeros(50, len(values))), 0), 1)[:250]

    def native_segments(values, segment, count):
        logs = pairs.segment_log_sum_exp(values, group(segment, count))
        assert bool(logs[250:].isneginf().all())
        return logs[:250]

    truth = run(eager_scores, eager_segments, "cuda", torch.float64)
    other = run(eager_scores, eager_segments, "cuda", dtype)
    found, again = (run(native_scores, native_segments, "cuda", dtype) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert_close(found, other, truth, dtype, [2, 2, 3, 3])


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("form", FORMS)
def test_the_whole_loss_equals_the_plain_path_and_itself(form, exchange):
    table, num_images, num_texts = make_table(200, EVERY_ROLE, groups=3)
    plan = make_plan(table, form=form, sizes=share_sizes(table, SingleProcess())).to(torch.device("cuda"))
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(count, 768, generator=generator) for count in (num_images, num_texts)]

    def run(path: str, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.cuda().to(dtype).requires_grad_() for tensor in (*vectors, torch.tensor(0.07))]
        result = contrastive_loss(
            *leaves[:2],
            plan,
            temperature=leaves[2],
            form=form,
            in_batch=True,
            communicator=SingleProcess(),
            exchange=exchange,
            path=path,
        )
        return [result.loss_sum.detach(), *torch.autograd.grad(result.loss_sum, leaves)]

    truth, found, again = run("tiled", torch.float64), run("native", torch.float32), run("native", torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    for one, exact in zip(found, truth, strict=True):
        assert float((one.double() - exact).abs().max()) <= 4e-3 * float(exact.abs().max())


def test_no_synchronisation_and_cuda_graphs():
    case = CASES["tile edges"]
    keys = Keys(*(key.cuda() for key in make_keys(case)))
    leaves = [vectors.half().cuda().requires_grad_() for vectors in make_vectors(case)]
    leaves.append(torch.tensor(1 / case.temperature, device="cuda", requires_grad=True))
    index = group(torch.arange(case.num_rows, device="cuda"), case.num_rows)

    def step() -> list[torch.Tensor]:
        logs = contrastive.log_sum_exps(*leaves, keys, both=True)
        private = pairs.segment_log_sum_exp(pairs.pair_scores(*leaves[:2], index, index), index)
        loss = logs.rows.sum() + logs.columns.sum() + private.sum()
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # a graph may not be the first to call a library
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for _ in range(2):
        graph.replay()
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
