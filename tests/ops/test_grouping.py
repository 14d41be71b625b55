"""Rows by group: numpy on the host finds what torch finds on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unimo_ds.ops.grouping import group, group_on_host


@pytest.mark.parametrize(("num_rows", "num_groups"), [(0, 0), (0, 3), (1, 1), (50, 7), (7, 50)])
def test_groups_made_on_the_host_are_those_made_on_a_device(num_rows, num_groups):
    index = np.random.default_rng(1).integers(0, num_groups + 2, num_rows)  # the last two are no groups
    expected, found = group(torch.from_numpy(index), num_groups), group_on_host(index, num_groups)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert found.num_groups == num_groups
    for number in range(num_groups):
        rows = found.order[found.starts[number] : found.starts[number + 1]]
        assert rows.tolist() == np.flatnonzero(index == number).tolist()
