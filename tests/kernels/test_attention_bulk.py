"""The forward kernel that loads whole tiles, emulated: it equals the one that copies, over many turns of its ring, and nothing
of a neighbouring sequence or from beyond the stream leaks into a tile's last rows."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.kernels.test_attention_operator import SIZE, random_inputs
from tests.ops.comparing import assert_within_budget
from unimo_ds.ops.attention import attention_reference, packed_attention
from unimo_ds.ops.layout import Layout, make_layout
from unimo_ds.ops.native import attention as native
from unimo_ds.ops.native import library


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_90")


def by(monkeypatch, forward: str, inputs: torch.Tensor, layout: Layout, probability: float = 0.0) -> torch.Tensor:
    monkeypatch.setattr(native, "FORWARD", forward)
    return packed_attention(inputs, layout, probability=probability, site=5, path="native")


@pytest.mark.parametrize(
    ("lengths", "prefixes"),
    [
        (
            [700, 129, 64, 1],
            [700, 129, 64, 1],
        ),  # around the ring more than once within a sequence; a warpgroup without rows
        ([520, 130], [0, 3]),  # the first warpgroup sees fewer tiles than the second
        ([5] * 30, [5] * 30),  # more sequences than slots and places
    ],
)
@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_equals_the_kernel_that_copies(monkeypatch, lengths, prefixes, probability):
    layout = make_layout(lengths, prefix_lengths=prefixes)
    inputs = random_inputs(layout.num_positions).bfloat16()
    expected = by(monkeypatch, "copies", inputs, layout, probability).float()
    found = by(monkeypatch, "bulk", inputs, layout, probability).float()
    assert native.bulk_tiles(inputs, layout) is not None
    # The same operations in the same order; what the host's compiler fuses may differ in a last bit.
    assert (found - expected).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
    assert (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("forward", ["copies", "bulk"])
def test_equals_reference_with_gradients(monkeypatch, forward):
    layout = make_layout([200, 101, 20], prefix_lengths=[60, 101, 0])
    monkeypatch.setattr(native, "FORWARD", forward)

    def path(inputs):
        return packed_attention(inputs, layout, probability=0.1, site=5, path="native")

    def reference(inputs):
        return attention_reference(inputs, layout, probability=0.1, site=5)

    assert_within_budget(path, reference, [random_inputs(321)], torch.float16)


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_nothing_of_a_neighbour_leaks(monkeypatch, worst):
    lengths = [70, 30, 128, 65, 1]
    layout = make_layout(lengths)
    inputs = random_inputs(sum(lengths)).half()
    clean = by(monkeypatch, "bulk", inputs, layout)
    starts = layout.sequence_starts.tolist()
    for sequence, (start, end) in enumerate(itertools.pairwise(starts)):
        spoilt = inputs.clone()
        spoilt[start:end] = worst
        found = by(monkeypatch, "bulk", spoilt, layout)
        others = layout.position_sequence != sequence
        assert torch.equal(found[others], clean[others])


def test_streams_that_share_take_the_kernel_that_copies(monkeypatch):
    monkeypatch.setattr(native, "FORWARD", "bulk")
    layout = make_layout([20, 7], prefix_of=[-1, 0])
    assert native.bulk_tiles(torch.zeros(27, 3, 1, SIZE, dtype=torch.float16), layout) is None
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    layout = make_layout([20, 7])
    assert native.bulk_tiles(torch.zeros(27, 3, 1, SIZE, dtype=torch.float16), layout) is None
