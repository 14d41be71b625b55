"""Whole-array randomness equals the scalar one, and drawing without replacement is fair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data.draws import Uniforms, draw_distinct, mix_many, ranges, uniform, uniforms_of
from unimo_ds.utils.seed import mix


@given(
    parts=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4),
    column=st.lists(st.integers(0, 2**40), min_size=1),
)
@settings(max_examples=30)
def test_mix_many_equals_mix(parts: list[int], column: list[int]) -> None:
    keys = mix_many(*parts, np.array(column))
    assert keys.tolist() == [mix(*parts, value) for value in column]
    assert ((uniform(keys) >= 0) & (uniform(keys) < 1)).all()


def test_ranges() -> None:
    assert ranges(np.array([5, 9, 1]), np.array([2, 0, 3])).tolist() == [5, 6, 1, 2, 3]


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=20), wanted=st.integers(0, 4), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_draws_are_distinct_and_in_range(counts: list[int], wanted: int, seed: int) -> None:
    rows, numbers = draw_distinct(mix_many(seed, np.arange(len(counts))), np.array(counts), wanted)
    for row, count in enumerate(counts):
        mine = numbers[rows == row].tolist()
        assert len(mine) == len(set(mine)) == min(wanted, count)
        assert all(0 <= number < count for number in mine)


def test_every_ordered_draw_is_equally_likely() -> None:
    many = 60_000
    _, numbers = draw_distinct(mix_many(3, np.arange(many)), np.full(many, 4), 2)
    first, second = numbers.reshape(many, 2).T
    counts = np.bincount(first * 4 + second, minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    # 12 outcomes of 5,000 expected each; five standard deviations are about 340.
    assert np.abs(counts[~np.eye(4, dtype=bool)] - many / 12).max() < 340


def test_numbers_are_a_function_of_their_key() -> None:
    keys = mix_many(np.arange(3))
    for key, together in zip(keys.tolist(), uniforms_of(keys, np.array([0, 5, 70])), strict=True):
        alone = Uniforms(key)
        numbers = [next(together) for _ in range(500)]
        assert numbers == [next(alone) for _ in range(500)]
        assert len(set(numbers)) == 500
        assert 0.4 < float(np.mean(numbers)) < 0.6
    assert sorted({Uniforms(key).below(3) for key in range(100)}) == [0, 1, 2]
