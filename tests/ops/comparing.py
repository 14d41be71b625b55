"""What parity tests of ops share: streams of many shapes, and the error budget against an fp64 reference.

Budget: the path's error against fp64 is at most twice (forward) or three times (gradients) the error of the plain reference
computed in the same dtype. Two floors: one rounding in that dtype, for where the reference happens to be exact, and a
hundred in fp64, for what the truth itself is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from unimo_ds.ops.layout import Layout, make_layout
from unimo_ds.utils.seed import mix

STREAMS = {
    "empty": ([], []),
    "one position": ([1], [1]),
    "ones": ([1, 1, 1], [1, 0, 1]),
    "bidirectional": ([7, 16, 5, 16, 33], [7, 16, 5, 16, 33]),
    "causal": ([9, 4, 20], [0, 0, 0]),
    "prefixes": ([12, 1, 17, 40, 3], [5, 1, 17, 21, 2]),
}
"""Name -> (lengths, prefix lengths)."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def stream(name: str) -> Layout:
    lengths, prefixes = STREAMS[name]
    return make_layout(lengths, prefix_lengths=prefixes, seeds=[mix(1, index) for index in range(len(lengths))])


def run(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and gradients of all inputs under a fixed, uneven upstream gradient, computed in `dtype`."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    output = function(*leaves)
    upstream = torch.linspace(-1, 2, max(1, output.numel()), dtype=torch.float64)[: output.numel()].view(output.shape)
    gradients = torch.autograd.grad(output, leaves, upstream.to(output), allow_unused=False)
    return output.detach(), list(gradients)


def assert_within_budget(
    path: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Forward and every gradient of `path` against `reference` (see the module's budget)."""
    # Inputs that the low precision can hold, so that the only errors are those of the computation.
    inputs = [tensor.to(dtype).double() for tensor in inputs]
    exact, exact_gradients = run(reference, inputs, torch.float64)
    plain, plain_gradients = run(reference, inputs, dtype)
    found, found_gradients = run(path, inputs, dtype)
    assert found.dtype == plain.dtype
    _assert_error(found, plain, exact, factor=2, what="output")
    triples = zip(found_gradients, plain_gradients, exact_gradients, strict=True)
    for index, (one, other, truth) in enumerate(triples):
        assert one.dtype == dtype
        _assert_error(one, other, truth, factor=3, what=f"gradient {index}")


def _assert_error(found: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, *, factor: float, what: str) -> None:
    assert found.shape == exact.shape, what
    if not exact.numel():
        return
    floor = (torch.finfo(found.dtype).eps + 100 * torch.finfo(torch.float64).eps) * float(exact.abs().max())
    budget = factor * float((plain.double() - exact).abs().max()) + floor
    error = float((found.double() - exact).abs().max())
    assert error <= budget, f"{what}: error {error:.3g} over the budget of {budget:.3g}"
