"""Packed attention: the bucketed path against the loop over sequences, and the loop against torch's own attention."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.ops.comparing import DTYPES, STREAMS, assert_within_budget, stream
from unimo_ds.ops import buckets
from unimo_ds.ops.attention import attention_reference, packed_attention, sequence_mask
from unimo_ds.ops.layout import make_layout
from unimo_ds.utils.errors import UserError

HEADS, SIZE = 3, 8


def random_inputs(num_positions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_positions)
    return torch.randn(num_positions, 3, HEADS, SIZE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("name", STREAMS)
def test_bucketed_equals_reference(name, probability, dtype):
    layout = stream(name)

    def path(inputs):
        return packed_attention(inputs, layout, probability=probability, site=70, path="bucketed")

    def reference(inputs):
        return attention_reference(inputs, layout, probability=probability, site=70)

    assert_within_budget(path, reference, [random_inputs(layout.num_positions)], dtype)


def test_buckets_cut_by_the_score_limit_change_nothing(monkeypatch):
    layout = make_layout([16] * 9 + [5, 5])
    inputs = random_inputs(layout.num_positions)
    whole = packed_attention(inputs, layout, probability=0.2, site=3)
    monkeypatch.setattr(buckets, "MAX_SCORES", 2 * HEADS * 16 * 16)
    cut = make_layout([16] * 9 + [5, 5])
    assert len(buckets.plan_of(cut, HEADS).buckets) == 6
    torch.testing.assert_close(packed_attention(inputs, cut, probability=0.2, site=3), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("prefix", [0, 4, 11])
def test_reference_equals_torch_attention(prefix):
    layout = make_layout([11], prefix_lengths=[prefix])
    inputs = random_inputs(11)
    query, key, value = inputs.permute(1, 2, 0, 3)
    seen = torch.tensor([[j < prefix or j <= i for j in range(11)] for i in range(11)])
    assert torch.equal(sequence_mask(11, prefix), seen)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(0, 1)
    torch.testing.assert_close(attention_reference(inputs, layout), expected)


@pytest.mark.parametrize("path", ["bucketed", "reference"])
def test_dropout_zeroes_the_stated_share_and_keeps_the_mean(path):
    length = 64
    layout = make_layout([length] * 8)
    inputs = torch.zeros(layout.num_positions, 3, HEADS, length, dtype=torch.float64)
    # Equal scores, and values that tell which key they came from: the output is the row of probabilities itself.
    inputs[:, 2] = torch.eye(length, dtype=torch.float64).repeat(8, 1)[:, None]
    weights = packed_attention(inputs, layout, probability=0.25, site=9, path=path) * length
    assert (weights == 0).double().mean() == pytest.approx(0.25, abs=0.01)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    other_site = packed_attention(inputs, layout, probability=0.25, site=10, path=path) * length
    assert ((weights == 0) == (other_site == 0)).double().mean() < 0.7


def test_sequences_do_not_touch_each_other():
    layout = make_layout([6, 9, 6])
    inputs = random_inputs(21).requires_grad_()
    output = packed_attention(inputs, layout, probability=0.1, site=1)
    (gradient,) = torch.autograd.grad(output[6:15].sum(), inputs)
    assert not gradient[:6].any()
    assert not gradient[15:].any()
    assert gradient[6:15].abs().amin() > 0


def shared_stream():
    """Two images that three and one texts see, a text that sees the prefix of a generative sequence, and ordinary sequences."""
    lengths = [4, 7, 5, 12, 3, 6, 9, 4, 8]
    prefixes = [4, 7, 5, 5, 0, 6, 9, 4, 8]
    owners = [1, -1, 1, -1, 1, 6, -1, 3, -1]
    seeds = [11, 12, 13, 14, 15, 16, 17, 18, 19]
    return make_layout(lengths, prefix_lengths=prefixes, seeds=seeds, prefix_of=owners)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_bucketed_equals_reference_where_prefixes_are_shared(probability, dtype):
    layout = shared_stream()

    def path(inputs):
        return packed_attention(inputs, layout, probability=probability, site=70, path="bucketed")

    def reference(inputs):
        return attention_reference(inputs, layout, probability=probability, site=70)

    assert_within_budget(path, reference, [random_inputs(layout.num_positions)], dtype)


@pytest.mark.parametrize("path", ["bucketed", "reference"])
def test_a_shared_prefix_is_seen_as_if_it_stood_in_the_sequence_and_sees_nothing(path):
    """Against torch's attention over image and text together, with the mask that the sharing stands for."""
    image, text, other = 5, 4, 3
    layout = make_layout([text, image, other], prefix_of=[1, -1, 1])
    inputs = random_inputs(layout.num_positions).requires_grad_()
    output = packed_attention(inputs, layout, path=path)
    for rows in (slice(0, text), slice(text + image, text + image + other)):
        joined = torch.cat((inputs[text : text + image], inputs[rows]))
        query, key, value = joined.permute(1, 2, 0, 3)
        seen = torch.ones(len(joined), len(joined), dtype=torch.bool)
        seen[:image, image:] = False
        expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(0, 1)
        torch.testing.assert_close(output[text : text + image], expected[:image])
        torch.testing.assert_close(output[rows], expected[image:])
    (gradient,) = torch.autograd.grad(output[text : text + image].sum(), inputs)
    assert not gradient[:text].any(), "the image saw a text"
    assert not gradient[text + image :].any(), "the image saw a text"


def test_dropout_of_a_shared_prefix_is_that_of_the_joint_sequence():
    """The same bits as in a joint sequence whose text stands at the offsets of the sequence that shares."""
    layout = make_layout([6, 6], prefix_of=[-1, 0], seeds=[1, 2])
    inputs = torch.zeros(12, 3, 1, 16, dtype=torch.float64)
    inputs[:, 2, 0, :12] = torch.eye(12, dtype=torch.float64)
    weights = packed_attention(inputs, layout, probability=0.4, site=2, path="bucketed")[6:, 0, :12]
    joint = torch.zeros(12, 3, 1, 16, dtype=torch.float64)
    joint[:, 2, 0, :12] = torch.eye(12, dtype=torch.float64)
    alone = packed_attention(joint, make_layout([12], seeds=[2]), probability=0.4, site=2, path="reference")[:6, 0, :12]
    torch.testing.assert_close(weights, alone, rtol=0, atol=1e-14)


def test_unknown_path_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'bucketed'"):
        packed_attention(random_inputs(1), make_layout([1]), path="buckted")


def test_bucket_lengths_waste_little():
    for length in range(1, 700):
        padded = buckets.bucket_length(length)
        assert length <= padded <= max(length * 1.25 + 3, 4)
        assert buckets.bucket_length(padded) == padded


def test_layouts_that_cannot_be_are_refused():
    for lengths, prefixes in (([0], [0]), ([3], [4]), ([3], [-1]), ([3, 2], [3])):
        with pytest.raises(ValueError, match=r"prefix|match"):
            make_layout(lengths, prefix_lengths=prefixes)
    for owners in ([1, 0], [-1, 2], [2, 0, -1], [-1, 0, 1]):
        with pytest.raises(ValueError, match="no prefix of its own"):
            make_layout([2] * len(owners), prefix_of=owners)
