"""Counter-based randomness: a pure function of its key, uniform enough, and without visible structure."""

from __future__ import annotations

import numpy as np
import torch

from unimo_ds.utils.seed import generator, keep_mask, mix, row_keys


def test_mix_depends_on_every_part_and_their_order():
    values = {mix(1, 2), mix(2, 1), mix(1, 2, 0), mix(1), mix(0, 1, 2), mix(-1)}
    assert len(values) == 6
    assert all(0 <= value < 1 << 63 for value in values)
    assert mix(5, 6) == mix(5, 6)


def test_generator_streams_are_functions_of_their_key():
    assert np.array_equal(generator(1, 2).random(8), generator(1, 2).random(8))
    assert not np.array_equal(generator(1, 2).random(8), generator(1, 3).random(8))


def masks(probability: float, site: int = 0) -> torch.Tensor:
    seeds = torch.tensor([mix(3, sequence) for sequence in range(16)]).repeat_interleave(32)
    offsets = torch.arange(32).repeat(16)
    return keep_mask(row_keys(seeds, offsets, site), 256, probability)


def test_keep_share_matches_probability():
    for probability in (0.1, 0.5):
        kept = masks(probability).double().mean().item()
        # 131,072 draws: five standard deviations
        assert abs(kept - (1 - probability)) < 5 * (probability * (1 - probability) / 131_072) ** 0.5


def test_rows_columns_and_sites_are_uncorrelated():
    kept = masks(0.5).double() - 0.5
    for shift in (1, 2, 32):
        assert (kept[shift:] * kept[:-shift]).mean().abs() < 0.005
    assert (kept[:, 1:] * kept[:, :-1]).mean().abs() < 0.005
    assert (kept * (masks(0.5, site=1).double() - 0.5)).mean().abs() < 0.005


def test_mask_is_a_function_of_seed_and_offset_not_of_place():
    seeds, offsets = torch.tensor([11, 11, 22]), torch.tensor([0, 1, 0])
    forward = keep_mask(row_keys(seeds, offsets, 5), 64, 0.3)
    backward = keep_mask(row_keys(seeds.flip(0), offsets.flip(0), 5), 64, 0.3)
    assert torch.equal(forward, backward.flip(0))
    assert torch.equal(keep_mask(row_keys(seeds, offsets, 5), 16, 0.3), forward[:, :16])
