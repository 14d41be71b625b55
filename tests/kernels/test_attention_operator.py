"""The attention operator with the kernels' own sources run on the CPU: errors, gradients, masks, tracing, refusals."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from tests.ops.comparing import assert_within_budget
from unimo_ds.ops.attention import attention_reference, packed_attention
from unimo_ds.ops.layout import Layout, make_layout
from unimo_ds.ops.native import attention as native
from unimo_ds.ops.native import build, library
from unimo_ds.utils import seed
from unimo_ds.utils.errors import UserError

HEADS, SIZE = 2, 64

STREAMS: dict[str, tuple[list[int], list[int], list[int] | None]] = {
    "empty": ([], [], None),
    "one position": ([1], [1], None),
    "tile edges": ([63, 64, 65, 16, 1], [63, 64, 65, 16, 1], None),
    "causal": ([17, 70], [0, 0], None),
    "prefixes": ([20, 80, 66], [7, 33, 65], None),
    "nobody shares": ([20, 7], [20, 3], [-1, -1]),
    "shared prefixes": (
        [20, 65, 5, 30, 30, 17, 12, 4],  # texts before and after what they see
        [20, 65, 0, 13, 9, 17, 0, 4],
        [1, -1, 3, -1, 1, 1, -1, 6],  # the last one shares a prefix of no positions
    ),
}
"""Name -> lengths, prefixes, and whose prefix each sequence shares."""
FORMATS = [("sm_70", torch.float16), ("sm_80", torch.float16), ("sm_80", torch.bfloat16), ("sm_90", torch.bfloat16)]


def stream(name: str) -> Layout:
    lengths, prefixes, owners = STREAMS[name]
    seeds = [seed.mix(2, index) for index in range(len(lengths))]
    return make_layout(lengths, prefix_lengths=prefixes, seeds=seeds, prefix_of=owners)


def random_inputs(num_positions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_positions)
    return torch.randn(num_positions, 3, HEADS, SIZE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("architecture", "dtype"), FORMATS)
@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("name", STREAMS)
def test_native_equals_reference(monkeypatch, name, probability, architecture, dtype):
    monkeypatch.setenv(library.ON_HOST, architecture)
    layout = stream(name)

    def path(inputs):
        return packed_attention(inputs, layout, probability=probability, site=5, path="native")

    def reference(inputs):
        return attention_reference(inputs, layout, probability=probability, site=5)

    assert_within_budget(path, reference, [random_inputs(layout.num_positions)], dtype)


@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [[128, 65, 64, 1, 101], [20, 130, 127]])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_short_sequences_go_backward_whole(monkeypatch, heads, lengths, probability):
    monkeypatch.setenv(library.ON_HOST, "sm_90")
    layout = make_layout(lengths, prefix_lengths=[length // 2 for length in lengths])
    inputs = random_inputs(layout.num_positions).repeat(1, 1, 2, 1)[:, :, :heads]

    def path(inputs):
        return packed_attention(inputs, layout, probability=probability, site=5, path="native")

    def reference(inputs):
        return attention_reference(inputs, layout, probability=probability, site=5)

    assert native._whole(inputs, layout) == (native._ALL_WHOLE if max(lengths) <= 128 else native._SHORT_WHOLE)
    assert_within_budget(path, reference, [inputs], torch.bfloat16)
    monkeypatch.setattr(native, "WHOLE_BACKWARD", False)
    assert native._whole(inputs, layout) == native._NOT_WHOLE


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80", "sm_90"])
@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_nothing_of_a_neighbour_leaks(monkeypatch, worst, architecture):
    monkeypatch.setenv(library.ON_HOST, architecture)
    lengths = [70, 30, 128, 65, 1]
    layout = make_layout(lengths, prefix_lengths=[length // 2 for length in lengths])
    inputs = random_inputs(sum(lengths)).half()

    def output_and_gradient(inputs):
        leaf = inputs.detach().requires_grad_()
        output = packed_attention(leaf, layout, probability=0.1, site=5, path="native")
        return output.detach(), torch.autograd.grad(output.float().sum(), leaf)[0]

    clean = output_and_gradient(inputs)
    for parity in (0, 1):
        spoilt = layout.position_sequence % 2 == parity
        found = output_and_gradient(inputs.masked_fill(spoilt[:, None, None, None], worst))
        assert found[0][spoilt].isnan().any()
        for one, other in zip(found, clean, strict=True):
            assert torch.equal(one[~spoilt], other[~spoilt])


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80", "sm_90"])
def test_dropout_mask_is_the_reference_mask_bit_for_bit(monkeypatch, architecture):
    monkeypatch.setenv(library.ON_HOST, architecture)
    layout = make_layout([SIZE] * 2, seeds=[7, 1 << 40])
    inputs = torch.zeros(layout.num_positions, 3, HEADS, SIZE, dtype=torch.float16)
    # Equal scores, and values that tell which key they came from: the output is the row of probabilities itself.
    inputs[:, 2] = torch.eye(SIZE, dtype=torch.float16).repeat(2, 1)[:, None]
    output = packed_attention(inputs, layout, probability=0.3, site=11, path="native")
    keys = seed.head_keys(seed.row_keys(layout.position_keys, 11), HEADS)
    assert torch.equal(output != 0, seed.keep_mask(keys, SIZE, 0.3))


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80", "sm_90"])
@pytest.mark.parametrize("image", [12, 13])
def test_dropout_mask_of_a_shared_prefix_is_the_reference_mask_bit_for_bit(monkeypatch, image, architecture):
    monkeypatch.setenv(library.ON_HOST, architecture)
    text = 30
    layout = make_layout([text, image], seeds=[7, 9], prefix_of=[1, -1])
    inputs = torch.zeros(text + image, 3, HEADS, SIZE, dtype=torch.float16)
    inputs[:, 2] = torch.eye(text + image, SIZE, dtype=torch.float16).roll(-image, 0)[:, None]
    leaf = inputs.clone().requires_grad_()
    output = packed_attention(leaf, layout, probability=0.3, site=11, path="native")[:text]
    keys = seed.head_keys(seed.row_keys(layout.position_keys, 11), HEADS)[:text]
    kept = seed.keep_mask(keys, text + image, 0.3)  # [text, H, columns]
    assert torch.equal(output[..., : text + image] != 0, kept)
    # The gradient of a value is the sum of the probabilities of the queries that see it: the backward kernels' masks.
    (gradient,) = torch.autograd.grad(output.sum(), leaf)
    expected = kept.double().sum(0) / (text + image) * seed.keep_scale(0.3)
    found = gradient[:, 2, :, 0].roll(image, 0).T.double()
    assert (found - expected).abs().max() < 4 * torch.finfo(torch.float16).eps


def test_blocks_cover_every_row_once_those_with_the_most_work_first():
    layout = make_layout([5, 200, 64, 1, 65], prefix_lengths=[5, 30, 0, 1, 65])
    tiles, sequences, sharing = native.make_tables(layout, rows=64)
    assert not sharing.numel()
    assert sequences[:, :3].tolist() == [[0, 5, 5], [5, 200, 30], [205, 64, 0], [269, 1, 1], [270, 65, 65], [335, 0, 0]]
    for order in tiles.tolist():
        assert len(order) == (335 + 63 * 5) // 64
        used = [tile for tile in order if tile[1]]
        assert not any(tile[1] for tile in order[len(used) :])
        rows = [start + row for start, length, _, first in used for row in range(first, min(first + 64, length))]
        assert sorted(rows) == list(range(335))
    by_queries, by_keys = ([(start, first) for start, length, _, first in order if length] for order in tiles.tolist())
    short = [(0, 0), (269, 0)]
    assert by_queries == [(5, 192), (5, 128), (5, 64), (270, 0), (270, 64), (5, 0), (205, 0), *short]
    assert by_keys == [(5, 0), (5, 64), (5, 128), (270, 0), (270, 64), (205, 0), (5, 192), *short]
    empty = native.make_tables(make_layout([]), rows=64)
    assert (empty.tiles.shape, empty.sequences.shape) == ((2, 0, 4), (1, 4))


def test_blocks_of_many_sequences_stay_near_their_neighbours():
    layout = make_layout([512] * 100, prefix_lengths=[256] * 100)
    tiles, _, _ = native.make_tables(layout, rows=64)
    for order, lightest in zip(tiles, (256, 64), strict=True):
        used = order[order[:, 1] > 0]
        places = used[:, 0] // 512 * 8 + used[:, 3] // 64  # where they lie in the stream
        assert places.sort().values.tolist() == list(range(800))
        assert (places - torch.arange(800)).abs().max() < native.WINDOW
        last = used[-1]
        seen = torch.maximum(last[2], last[3] + 64) if lightest == 256 else last[1] - last[3]
        assert seen == lightest


def test_blocks_know_what_is_shared():
    layout = make_layout([3, 70, 9, 2], prefix_lengths=[3, 65, 0, 2], prefix_of=[1, -1, -1, 1])
    tiles, sequences, sharing = native.make_tables(layout, rows=64)
    # start, length, prefix, first row; shared from, how many; queries of others: where in `sharing`, how many
    owner, first, third = [3, 70, 65], [0, 3, 3, 0, 3, 65, 0, 0], [82, 2, 2, 0, 3, 65, 5, 0]
    by_queries, by_keys = ([tile for tile in order.tolist() if tile[1]] for order in tiles)
    assert by_queries == [[*owner, 64, 0, 0, 0, 5], first, third, [*owner, 0, 0, 0, 0, 5], [73, 9, 0, 0, 0, 0, 5, 0]]
    assert by_keys[:2] == [[*owner, 0, 0, 0, 0, 5], [*owner, 64, 0, 0, 0, 5]]
    assert sorted(by_keys) == sorted(by_queries)
    assert [entry[:3] + entry[4:] for entry in sequences.tolist()[:-1]] == [
        tile[:3] + tile[4:] for tile in sorted(by_queries) if tile[3] == 0
    ]
    assert sharing.shape == (84,)
    assert sharing[:5].tolist() == [0, 1, 2, 82, 83]
    empty = native.make_tables(make_layout([], prefix_of=[]), rows=64)
    assert (empty.tiles.shape, empty.sharing.shape) == ((2, 0, 8), (0,))


@pytest.mark.parametrize("owners", [None, [-1, 0]])
def test_operator_traces_and_differentiates(monkeypatch, owners):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    layout = make_layout([20, 3], prefix_lengths=[4, 3], prefix_of=owners)
    inputs = random_inputs(23).half().requires_grad_()
    arguments = (inputs, *native.tables_of(layout), layout.position_keys, 0.1, 2, 0)
    torch.library.opcheck(torch.ops.unimo.attention_forward.default, arguments)

    def loss(query_key_value, *rest):
        return torch.ops.unimo.attention_forward(query_key_value * 1.5, *rest)[0].float().square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected, found = loss(*arguments), compiled(*arguments)
    assert torch.equal(expected, found)
    assert torch.equal(torch.autograd.grad(expected, inputs)[0], torch.autograd.grad(found, inputs)[0])


def test_python_and_the_kernels_agree_on_the_arguments():
    size = library.load(build.build_host("sm_80")).unimo_attention_argument_bytes()
    assert size == ctypes.sizeof(native._Arguments)


def test_what_the_kernels_cannot_take_is_refused_by_name(monkeypatch):
    layout = make_layout([3])
    half = torch.zeros(3, 3, HEADS, SIZE, dtype=torch.float16)
    with pytest.raises(UserError, match="it runs on NVIDIA GPUs"):
        packed_attention(half, layout, path="native")
    monkeypatch.setenv(library.ON_HOST, "sm_70")
    with pytest.raises(UserError, match="heads of 64, not 32"):
        packed_attention(half[..., :32], layout, path="native")
    with pytest.raises(UserError, match="float16 and bfloat16, not float32"):
        packed_attention(half.float(), layout, path="native")
    with pytest.raises(UserError, match="use float16 on a V100"):
        packed_attention(half.bfloat16(), layout, path="native")


def test_uniform_attention_is_the_mean(monkeypatch):
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    inputs = random_inputs(100).half()
    inputs[:, 0] = 0
    output = packed_attention(inputs, make_layout([100]), path="native")
    mean = inputs[:, 2].double().mean(0)
    assert (output.double() - mean).abs().max() < 4 / 1024 / math.sqrt(100) * 3
