"""Randomness as a pure function of a key, never of the state of a worker or rank.

Two forms: `mix` and `generator` for decisions on the host (order, masking, sampling of rewrites), and `keep_mask` for dropout,
whose bits depend only on (sequence seed, site, offset within the sequence, column). The second uses only 32-bit integer
operations, so that a CUDA kernel can reproduce it bit for bit.

The dropout bits, exactly (all arithmetic on 32-bit integers modulo 2^32; `>>` logical):

    fmix(x):          x ^= x >> 16; x *= 0x85EBCA6B; x ^= x >> 13; x *= 0xC2B2AE35; x ^= x >> 16     (Murmur3's finalizer)
    sequence key    = fmix(fmix(seed[0:32] + 0x7F4A7C15) ^ seed[32:64])
    position key    = fmix(sequence key + offset * 0x9E3779B1)                   offset: of the position in its sequence
    row key         = fmix(position key + (site + 1) * 0x9E3779B9)               site: which dropout of the model
    head's row key  = fmix(row key + (head + 1) * 0x85EBCA77)                    only in attention dropout
    word j          = fmix(row key + j * 0x27D4EB2F)
    column c        = low 16 bits of word c / 2 if c is even, high 16 bits if it is odd, as a signed number
    kept            = column c >= round(probability * 65536) - 32768

Two columns per word halve the hashing, which is the whole cost of a mask (1 ms for 4,000 x 256 on one AVX2 core, a third of
the cost of one finalizer and one boolean comparison per element); 16 bits keep the rate within 1e-5 of the one requested.
"""

from __future__ import annotations

import torch

# By name, or numpy would import `numpy.random` at its first use: in a loader's worker that hangs if another thread of the
# trainer (a tracker's) was importing it at the fork.
from numpy.random import Generator, Philox

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


def generator(*parts: int) -> Generator:
    """A NumPy generator whose stream depends only on `parts`."""
    return Generator(Philox(key=mix(*parts)))


def _to_int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= (1 << 31) else value


def finalize_32(bits: torch.Tensor) -> torch.Tensor:
    """Murmur3's 32-bit finalizer, elementwise on int32 (logical shifts), in place.

    bits: int32, any shape; overwritten.
    """
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    bits.mul_(_to_int32(0x85EBCA6B))
    bits.bitwise_xor_((bits >> 13).bitwise_and_(0x7FFFF))
    bits.mul_(_to_int32(0xC2B2AE35))
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    return bits


def position_keys(sequence_seeds: torch.Tensor, sequence: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """One 32-bit key per stream position, common to all dropout sites.

    sequence_seeds: [S] int64. sequence: [T] integer, the sequence of each position. offset: [T] integer, its offset in it.
    Returns [T] int32.
    """
    halves = sequence_seeds.contiguous().view(torch.int32).view(-1, 2)  # little-endian: low half first
    key = finalize_32(finalize_32(halves[:, 0] + _to_int32(0x7F4A7C15)) ^ halves[:, 1])
    return finalize_32(key[sequence] + offset.to(torch.int32) * _to_int32(0x9E3779B1))


def row_keys(position_keys: torch.Tensor, site: int) -> torch.Tensor:
    """One 32-bit key per stream position for one dropout site.

    position_keys: [T] int32 from `position_keys`. Returns [T] int32.
    """
    return finalize_32(position_keys + _to_int32((site + 1) * 0x9E3779B9))


def head_keys(row_keys: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Keys of the rows of attention probabilities, one per query position and head.

    row_keys: [T] int32 from `row_keys`. Returns [T, num_heads] int32.
    """
    heads = torch.arange(1, num_heads + 1, dtype=torch.int32, device=row_keys.device) * _to_int32(0x85EBCA77)
    return finalize_32(row_keys.unsqueeze(-1) + heads)


def keep_mask(
    keys: torch.Tensor, num_columns: int, probability: float, *, dtype: torch.dtype = torch.bool
) -> torch.Tensor:
    """Dropout mask: element (row, column) is kept with probability 1 - `probability`.

    keys: [...] int32 from `row_keys` or `head_keys`. Returns [..., num_columns] of `dtype`, 1 where kept, 0 where dropped.
    On CPU a floating `dtype` is cheaper than bool: torch's comparison into bool is scalar code there.
    """
    num_words = (num_columns + 1) // 2
    columns = torch.arange(num_words, dtype=torch.int32, device=keys.device) * _to_int32(0x27D4EB2F)
    lanes = finalize_32(keys.unsqueeze(-1) + columns).view(torch.int16)
    mask = torch.empty((*keys.shape, num_columns), dtype=dtype, device=keys.device)
    return torch.ge(lanes[..., :num_columns], keep_threshold(probability), out=mask)


def uniform(keys: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Numbers in [0, 1): element (row, column) is a function of the row's key and the column.

    keys: [N] int32 from `row_keys`. Returns [N, num_columns] fp32, multiples of 2^-23.
    """
    columns = torch.arange(num_columns, dtype=torch.int32, device=keys.device) * _to_int32(0x27D4EB2F)
    words = finalize_32(keys.unsqueeze(-1) + columns)
    return ((words >> 9) & 0x7FFFFF).float() * 2.0**-23


def keep_scale(probability: float) -> float:
    """Factor of kept elements that preserves the mean: one over the exact fraction that `keep_mask` keeps."""
    return 65536 / (65536 - _threshold(probability))


def keep_threshold(probability: float) -> int:
    """The smallest signed 16-bit column value that is kept, for kernels that make the mask themselves."""
    return _threshold(probability) - 32768


def _threshold(probability: float) -> int:
    """How many of the 65536 values of a column are dropped."""
    if not 0 <= probability < 1:
        raise ValueError(f"dropout probability {probability} is not in [0, 1)")
    return min(round(probability * 65536), 65535)
