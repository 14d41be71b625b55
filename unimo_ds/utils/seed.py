"""Randomness as a pure function of a key, never of a worker's or a rank's own state.

Two forms: `mix` and `generator` for host decisions (order, masking, sampling of rewrites), and `keep_mask` for dropout,
whose bits depend only on (sequence seed, site, offset within the sequence, column). The second is written with 32-bit
integer operations alone, so that a CUDA kernel can reproduce it bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch

_MASK_64 = (1 << 64) - 1


def mix(*parts: int) -> int:
    """Hash of integers to a non-negative 63-bit key (splitmix64 finalizer, folded over the parts)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK_64)) & _MASK_64
        state = (state + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state >> 1


def generator(*parts: int) -> np.random.Generator:
    """A NumPy generator whose whole stream is a function of `parts`."""
    return np.random.Generator(np.random.Philox(key=mix(*parts)))


def _to_int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= (1 << 31) else value


def finalize_32(bits: torch.Tensor) -> torch.Tensor:
    """Murmur3's 32-bit finalizer, elementwise on int32 (logical shifts), in place.

    bits: int32, any shape; overwritten.
    """
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _to_int32(0x85EBCA6B)
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= _to_int32(0xC2B2AE35)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def row_keys(sequence_seeds: torch.Tensor, offsets: torch.Tensor, site: int) -> torch.Tensor:
    """One 32-bit key per stream position.

    sequence_seeds: [T] int64, the seed of the sequence each position belongs to.
    offsets: [T] integer, offset of the position within its sequence.
    site: which dropout this is (layer * 64 + an index within the layer).
    Returns [T] int32.
    """
    low = (sequence_seeds & 0xFFFFFFFF).to(torch.int64)
    high = (sequence_seeds >> 32) & 0xFFFFFFFF
    low = torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
    high = torch.where(high >= 1 << 31, high - (1 << 32), high).to(torch.int32)
    key = finalize_32(low + _to_int32(site * 0x9E3779B9 + 0x7F4A7C15))
    key = finalize_32(key ^ high)
    return finalize_32(key + offsets.to(torch.int32) * _to_int32(0x9E3779B1))


def keep_mask(keys: torch.Tensor, num_columns: int, probability: float) -> torch.Tensor:
    """Dropout mask: element (row, column) is kept with chance 1 - probability.

    keys: [...] int32 from `row_keys`. Returns [..., num_columns] bool, True where kept.
    """
    columns = torch.arange(num_columns, dtype=torch.int32, device=keys.device) * _to_int32(0x27D4EB2F)
    bits = finalize_32(keys.unsqueeze(-1) + columns)
    # int32 is uniform over [-2^31, 2^31): the lowest `probability` share is dropped.
    threshold = int(probability * (1 << 32)) - (1 << 31)
    return bits >= threshold
