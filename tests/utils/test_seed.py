"""Counter-based randomness: a pure function of its key, uniform enough, and without visible structure."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from unimo_ds.utils.seed import finalize_32, generator, head_keys, keep_mask, keep_scale, mix, position_keys, row_keys


def test_mix_depends_on_every_part_and_their_order():
    values = {mix(1, 2), mix(2, 1), mix(1, 2, 0), mix(1), mix(0, 1, 2), mix(-1)}
    assert len(values) == 6
    assert all(0 <= value < 1 << 63 for value in values)
    assert mix(5, 6) == mix(5, 6)
    # The first output of the published splitmix64 with the seed 1234567.
    assert mix(0x9E3779B97F4A7C15 ^ 1234567) == 6457827717110365317 >> 1


def test_numpys_random_module_is_there_before_any_worker_is_forked():
    """A worker that has to import it waits for ever where another thread of the trainer was doing so at the fork."""
    code = "import sys, unimo_ds.data.loader; sys.exit('numpy.random' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_generator_streams_are_functions_of_their_key():
    assert np.array_equal(generator(1, 2).random(8), generator(1, 2).random(8))
    assert not np.array_equal(generator(1, 2).random(8), generator(1, 3).random(8))


def masks(probability: float, site: int = 0) -> torch.Tensor:
    seeds = torch.tensor([mix(3, sequence) for sequence in range(16)])
    sequence, offset = torch.arange(16).repeat_interleave(32), torch.arange(32).repeat(16)
    return keep_mask(row_keys(position_keys(seeds, sequence, offset), site), 256, probability)


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
    seeds, sequence, offset = torch.tensor([11, 22]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    keys = row_keys(position_keys(seeds, sequence, offset), 5)
    forward = keep_mask(keys, 64, 0.3)
    turned = row_keys(position_keys(seeds.flip(0), 1 - sequence.flip(0), offset.flip(0)), 5)
    assert torch.equal(forward, keep_mask(turned, 64, 0.3).flip(0))
    assert torch.equal(keep_mask(keys, 16, 0.3), forward[:, :16])
    assert torch.equal(keep_mask(keys, 15, 0.3), forward[:, :15])


def test_mask_follows_its_written_definition():
    """The docstring's formulas in plain Python integers, as a kernel would compute them."""
    low, high, offset, site, head, column = 0x89ABCDEF, 0x12345678, 7, 130, 2, 11

    def fmix(x: int) -> int:
        x &= 0xFFFFFFFF
        x ^= x >> 16
        x = x * 0x85EBCA6B & 0xFFFFFFFF
        x ^= x >> 13
        x = x * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ (x >> 16)

    row = fmix(fmix(fmix(fmix(low + 0x7F4A7C15) ^ high) + offset * 0x9E3779B1) + (site + 1) * 0x9E3779B9)
    head_row = fmix(row + (head + 1) * 0x85EBCA77)
    seeds = torch.tensor([high << 32 | low])
    rows = row_keys(position_keys(seeds, torch.tensor([0]), torch.tensor([offset])), site)
    heads = head_keys(rows, 4)
    for key, tensor in ((row, rows[0]), (head_row, heads[0, head])):
        assert int(tensor) & 0xFFFFFFFF == key
        word = fmix(key + column // 2 * 0x27D4EB2F)
        lane = word >> 16 if column % 2 else word & 0xFFFF
        lane -= (lane >> 15) << 16
        for probability in (0.1, 0.3, 0.5, 0.9):
            kept = lane >= round(probability * 65536) - 32768
            assert bool(keep_mask(tensor, 16, probability)[column]) == kept
            assert float(keep_mask(tensor, 16, probability, dtype=torch.float32)[column]) == float(kept)


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    assert keep_scale(0.0) == 1
    assert keep_scale(0.5) == 2
    assert abs(keep_scale(0.1) * 0.9 - 1) < 1e-5
    with pytest.raises(ValueError, match="not in"):
        keep_scale(1.0)


def test_heads_and_neighbouring_lanes_are_uncorrelated():
    keys = row_keys(position_keys(torch.tensor([5]), torch.zeros(512, dtype=torch.int64), torch.arange(512)), 3)
    kept = keep_mask(head_keys(keys, 4), 256, 0.5).double() - 0.5  # [512, 4, 256]
    assert (kept[:, 1:] * kept[:, :-1]).mean().abs() < 0.005
    assert (kept[..., 0::2] * kept[..., 1::2]).mean().abs() < 0.005
    assert (kept[1:] * kept[:-1]).mean().abs() < 0.005
    assert kept.mean((0, 1)).abs().max() < 0.06  # every column, 2048 draws each
    assert not finalize_32(torch.zeros(1, dtype=torch.int32)).any()
