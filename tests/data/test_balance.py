"""Every sample on exactly one rank and micro-batch, within the budget, evenly, and the same whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data.balance import contrast_groups, estimate_costs, split_step
from unimo_ds.utils.errors import UserError


@given(
    sizes=st.lists(st.integers(1, 400), min_size=0, max_size=80),
    world_size=st.integers(1, 8),
    budget=st.sampled_from([400, 1000, 5000, 10**6]),
)
@settings(max_examples=60)
def test_every_sample_once_within_the_budget(sizes: list[int], world_size: int, budget: int) -> None:
    lengths = np.array(sizes, np.int64)
    costs = lengths + lengths**2 / 100
    split = split_step(costs, lengths, lengths % 2 == 0, world_size, budget)
    assert len(split) == world_size
    assert len({len(rank) for rank in split}) == 1
    rows = [row for rank in split for micro in rank for row in micro.tolist()]
    assert sorted(rows) == list(range(len(sizes)))
    for rank in split:
        for micro in rank:
            assert lengths[micro].sum() <= budget
            assert micro.tolist() == sorted(micro.tolist())
    # No more micro-batches than half-full bins would need.
    assert (len(split[0]) - 1) * world_size * budget / 2 <= lengths.sum()
    again = split_step(costs, lengths, lengths % 2 == 0, world_size, budget)
    assert [[m.tolist() for m in r] for r in again] == [[m.tolist() for m in r] for r in split]


def test_loads_are_close_to_equal() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(100, 700, 1024)
    costs = lengths * 1.0
    split = split_step(costs, lengths, None, 32, 16384)
    loads = np.array([[costs[micro].sum() for micro in rank] for rank in split])
    assert loads.max() / loads.mean() < 1.01


def test_a_bin_too_full_for_one_sample_may_hold_the_next() -> None:
    costs, lengths = np.array([10, 9, 8, 7, 6]), np.array([90, 10, 20, 50, 10])
    split = split_step(costs, lengths, None, 2, 100)
    assert [[micro.tolist() for micro in rank] for rank in split] == [[[0, 4]], [[1, 2, 3]]]


def test_ranks_are_even_where_micro_batches_are_not() -> None:
    split = split_step(np.ones(4), np.full(4, 10), None, 3, 10)
    assert [[len(micro) for micro in rank] for rank in split] == [[1, 1], [1, 0], [1, 0]]


def test_pairs_are_spread_where_costs_are_equal() -> None:
    pairs = np.array([True] * 8 + [False] * 8)
    split = split_step(np.ones(16), np.ones(16), pairs, 4, 100)
    assert [int(pairs[rank[0]].sum()) for rank in split] == [2, 2, 2, 2]


def test_fewer_samples_than_ranks_leaves_empty_micro_batches() -> None:
    split = split_step(np.ones(2), np.ones(2), None, 5, 10)
    assert [len(rank[0]) for rank in split] == [1, 1, 0, 0, 0]


def test_a_sample_beyond_the_budget_is_named() -> None:
    with pytest.raises(UserError, match=r"shard-3:7 makes 501 .*micro_batch_tokens=500; raise"):
        split_step(np.ones(2), np.array([4, 501]), None, 2, 500, name_of=lambda row: f"shard-3:{row + 6}")


def test_costs_count_attention() -> None:
    costs = estimate_costs(np.array([10, 20, 600]), np.array([0, 2, 3]), hidden_size=100)
    assert costs == pytest.approx([30 + 500 / 600, 600 + 600])
    assert len(estimate_costs(np.zeros(0, np.int64), np.zeros(1, np.int64), hidden_size=8)) == 0


def test_contrast_groups_count_pairs_alone() -> None:
    is_pair = np.array([False, True, True, False, True, True, True])
    assert contrast_groups(is_pair, group_pairs=2).tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert contrast_groups(is_pair, group_pairs=0).tolist() == [0] * 7
