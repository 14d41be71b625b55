"""Rows by group. Sums over groups follow this order, so that two runs give the same bits.

Best made on the host (`group_on_host`): on a GPU the sort takes a dozen kernel launches.

Letters: Q rows, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Groups(NamedTuple):
    """Which rows belong to each group."""

    group_of: torch.Tensor
    """[Q] int64, the group of each row."""
    order: torch.Tensor
    """[Q] int64, rows sorted by group, in their original order within each."""
    starts: torch.Tensor
    """[G + 1] int64, where each group starts in `order`."""

    @property
    def num_groups(self) -> int:
        return len(self.starts) - 1


def group(index_Q: torch.Tensor, num_groups: int) -> Groups:
    """Groups of rows, given the group of each, [Q] integers; rows with numbers >= `num_groups` end `order`, in no group."""
    ordered, order = index_Q.int().sort(stable=True)  # half the passes of a radix sort of int64
    bounds = torch.arange(num_groups + 1, dtype=torch.int32, device=index_Q.device)
    return Groups(index_Q, order, torch.searchsorted(ordered, bounds))


def group_on_host(index_Q: NDArray[np.int64], num_groups: int) -> Groups:
    """`group` of numbers on the host, for which numpy's calls are cheaper than torch's."""
    counts = np.bincount(index_Q, minlength=num_groups)[:num_groups]
    starts = np.zeros(num_groups + 1, np.int64)
    counts.cumsum(out=starts[1:])
    return Groups(*map(torch.from_numpy, (index_Q, index_Q.argsort(kind="stable"), starts)))
