"""What tests of the contrastive kernels share: small score matrices with every kind of conflict, and what they mean in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimo_ds.ops.score_blocks import Keys


@dataclass(frozen=True)
class Case:
    """Shape of a score matrix and the temperature; `related` items beyond the pairs' own on each side."""

    num_rows: int
    num_columns: int
    size: int = 32
    temperature: float = 0.07
    groups: int = 1
    listed: int = 1
    """Own items of every row and column."""


CASES = {
    "one row": Case(1, 70),
    "one column": Case(70, 1),
    "tile edges": Case(129, 1030, size=16),
    "many lists": Case(64, 1024, listed=5),
    "groups": Case(130, 200, groups=3),
    "sharp": Case(96, 300, temperature=0.001),
    "nothing allowed": Case(64, 64, groups=0),
}


def make_vectors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors, fp64: [A, D] and [B, D]."""
    generator = torch.Generator().manual_seed(case.num_rows * 1000 + case.num_columns)
    rows, columns = (
        torch.nn.functional.normalize(torch.randn(count, case.size, generator=generator, dtype=torch.float64), dim=1)
        for count in (case.num_rows, case.num_columns)
    )
    return rows, columns


def make_keys(case: Case) -> Keys:
    """Rows and columns of some pairs; related items that several pairs share; no group in common where groups is 0."""
    pairs = max(1, min(case.num_rows, case.num_columns) * 2 // 3)

    def side(count: int, first_item: int, group_offset: int) -> torch.Tensor:
        owner = torch.arange(count) % pairs
        group = owner * max(case.groups, 1) // pairs + group_offset
        items = torch.where(
            torch.arange(count) < pairs, owner + first_item, first_item + 5000 + torch.arange(count) % 7
        )
        return torch.stack((group, owner + 100, owner // 2 + 900, items), 1)

    def lists(count: int, first_item: int) -> torch.Tensor:
        own = (torch.arange(count) % pairs + first_item)[:, None]
        others = first_item + 5000 + (torch.arange(count)[:, None] + torch.arange(case.listed - 1)) % 11
        return torch.cat((own, others), 1)

    rows, columns = side(case.num_rows, 10_000, 0), side(case.num_columns, 20_000, 9 if case.groups == 0 else 0)
    return Keys(rows, columns, lists(case.num_rows, 20_000), lists(case.num_columns, 10_000))


def masks(keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
    """[A, B] bool: columns that are negatives of rows, and rows that are negatives of columns."""
    row, column = keys.rows[:, None], keys.columns[None]
    both = (row[..., 0] == column[..., 0]) & (row[..., 1] != column[..., 1]) & (row[..., 2] != column[..., 2])
    for_rows = both & (keys.row_items[:, None] != column[..., 3:]).all(-1)
    for_columns = both & (keys.column_items[None] != row[..., 3:]).all(-1)
    return for_rows, for_columns


def plain(
    rows: torch.Tensor, columns: torch.Tensor, inverse_temperature: torch.Tensor, keys: Keys
) -> tuple[torch.Tensor, ...]:
    """(log-sum-exp of rows, best of rows, of columns, best of columns) by their formula, in the inputs' dtype."""
    scores = rows @ columns.T
    for_rows, for_columns = masks(keys)
    by_rows, best_rows = _reduce(scores, for_rows, inverse_temperature)
    by_columns, best_columns = _reduce(scores.T, for_columns.T, inverse_temperature)
    return by_rows, best_rows, by_columns, best_columns


def _reduce(scores: torch.Tensor, allowed: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    best = scores.masked_fill(~allowed, -torch.inf).amax(1)
    # A row without candidates passes through logsumexp as zeros: its gradient would be nan otherwise.
    hidden = ~allowed & allowed.any(1, keepdim=True)
    logs = torch.logsumexp((scores * inverse).masked_fill(hidden, -torch.inf), 1)
    return torch.where(allowed.any(1), logs, -torch.inf), best
