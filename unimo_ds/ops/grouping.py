"""Rows by the group that each belongs to: what sums over groups follow, so that two runs give the same bits.

Best made on the host: a GPU would sort, and have a dozen kernels started for it.

Letters: Q rows, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Groups(NamedTuple):
    """Which rows make each group."""

    group_of: torch.Tensor
    """[Q] int64, the group of each row."""
    order: torch.Tensor
    """[Q] int64, the rows group by group, in their own order within each."""
    starts: torch.Tensor
    """[G + 1] int64, where each group's rows begin in `order`."""

    @property
    def num_groups(self) -> int:
        return len(self.starts) - 1


def group(index_Q: torch.Tensor, num_groups: int) -> Groups:
    """The groups 0 to `num_groups` - 1 of rows whose groups are [Q] integers; rows of a higher number end `order`, in none."""
    ordered, order = index_Q.int().sort(stable=True)  # half the passes of a radix sort of int64
    bounds = torch.arange(num_groups + 1, dtype=torch.int32, device=index_Q.device)
    return Groups(index_Q, order, torch.searchsorted(ordered, bounds))
