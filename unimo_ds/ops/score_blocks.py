"""Log-sum-exps over one matrix of scores between row and column vectors: of rows, and optionally of columns. Plain, tiled.

Each row is a query over the columns and, if `both`, each column is a query over the rows. The score of a row and a column is
their cosine over the temperature. Keys determine which scores count; see `allowed_negatives`.

Letters: A row vectors, B column vectors, D vector size, k own items of a row or column among the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from unimo_ds.ops.own_precision import own_precision
from unimo_ds.utils.differentiable_once import differentiable_once

ROWS_PER_TILE = 512


class Keys(NamedTuple):
    """Which rows and columns are each other's negatives."""

    rows: torch.Tensor
    """[A, 4] int64: group, owner's image key, owner's text key, key of the item itself (unused if only rows are queries)."""
    columns: torch.Tensor
    """[B, 4] int64"""
    row_items: torch.Tensor
    """[A, k] int64, keys of the row's pair's own items among the columns."""
    column_items: torch.Tensor
    """[B, k] int64, keys of the column's pair's own items among the rows; unused if only rows are queries."""


class Logs(NamedTuple):
    """For each row, and for each column if columns are queries too, else empty."""

    rows: torch.Tensor
    """[A] log of the sum of exp(score) over the row's allowed columns; -inf if there is none."""
    best_rows: torch.Tensor
    """[A] the highest allowed cosine; -inf if there is none. No gradient."""
    columns: torch.Tensor
    """[B]"""
    best_columns: torch.Tensor
    """[B]"""


def allowed_negatives(query_keys: torch.Tensor, own_items: torch.Tensor, candidate_keys: torch.Tensor) -> torch.Tensor:
    """[P, C] bool: the same group, an owner with another image and another text, and not one of the pair's own items.

    A pair is never its own negative, nor is a pair with an equal caption, nor an item related to both.
    """
    query, candidate = query_keys.unsqueeze(1), candidate_keys.unsqueeze(0)
    return (
        (query[..., 0] == candidate[..., 0])
        & (query[..., 1] != candidate[..., 1])
        & (query[..., 2] != candidate[..., 2])
        & (own_items.unsqueeze(1) != candidate[..., 3:]).all(-1)
    )


def log_sum_exps(rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, keys: Keys, *, both: bool) -> Logs:
    """rows: [A, D]; columns: [B, D]; inverse: 1 / temperature, scalar. Differentiable in all three."""
    return Logs(*_LogSumExps.apply(rows, columns, inverse, *keys, both))  # type: ignore[no-untyped-call]


class _LogSumExps(torch.autograd.Function):
    """Backward recomputes each tile's scores."""

    @staticmethod
    @own_precision
    def forward(ctx: Any, rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, *rest: Any) -> Logs:
        *keys, ctx.both = rest
        logs = _log_sum_exps(rows, columns, inverse, Keys(*keys), both=ctx.both)
        ctx.save_for_backward(rows, columns, inverse, *keys, logs.rows, logs.columns)
        ctx.mark_non_differentiable(logs.best_rows, logs.best_columns)
        return logs

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, columns, inverse, *keys, row_logs, column_logs = ctx.saved_tensors
        found = gradients(
            upstream[0], upstream[2], rows, columns, inverse, Keys(*keys), row_logs, column_logs, both=ctx.both
        )
        return *found, None, None, None, None, None


def _log_sum_exps(rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, keys: Keys, *, both: bool) -> Logs:
    nothing, num_columns = rows.new_zeros(0), len(columns) if both else 0
    of_rows, best_rows = [nothing], [nothing]
    of_columns, best_columns = (rows.new_full((num_columns,), -torch.inf) for _ in range(2))
    for tile in _tiles(len(rows)):
        scores = rows[tile] @ columns.T
        by_rows = _allowed_for_rows(scores, keys, tile)
        of_rows.append(torch.logsumexp(by_rows * inverse, 1))
        best_rows.append(by_rows.amax(1) if len(columns) else by_rows.new_full((len(by_rows),), -torch.inf))
        if both:
            by_columns = _allowed_for_columns(scores, keys, tile)
            of_columns = torch.logaddexp(of_columns, torch.logsumexp(by_columns * inverse, 0))
            best_columns = torch.maximum(best_columns, by_columns.amax(0))
    return Logs(torch.cat(of_rows), torch.cat(best_rows), of_columns, best_columns)


def gradients(
    row_gradients: torch.Tensor,
    column_gradients: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    inverse: torch.Tensor,
    keys: Keys,
    row_logs: torch.Tensor,
    column_logs: torch.Tensor,
    *,
    both: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of rows, columns and `inverse`, given those of the logs; recomputes the scores tile by tile.

    The logs may cover more than this matrix: the gradients are then this matrix's share.
    """
    to_rows, to_columns, to_inverse = torch.zeros_like(rows), torch.zeros_like(columns), torch.zeros_like(inverse)
    for tile in _tiles(len(rows)):
        scores = rows[tile] @ columns.T
        parts = [(_allowed_for_rows(scores, keys, tile), row_logs[tile, None], row_gradients[tile, None])]
        if both:
            parts.append((_allowed_for_columns(scores, keys, tile), column_logs[None], column_gradients[None]))
        for allowed, logs, upstream in parts:
            weights = torch.exp(allowed * inverse - logs.masked_fill(logs.isinf(), 0.0)) * upstream
            to_inverse += (weights * allowed.masked_fill(allowed.isinf(), 0.0)).sum()
            weights = weights * inverse
            to_rows[tile] += weights @ columns
            to_columns += weights.T @ rows[tile]
    return to_rows, to_columns, to_inverse


def _tiles(num_rows: int) -> list[slice]:
    return [slice(start, start + ROWS_PER_TILE) for start in range(0, num_rows, ROWS_PER_TILE)]


def _allowed_for_rows(scores: torch.Tensor, keys: Keys, tile: slice) -> torch.Tensor:
    """Cosines, -inf if the column is no negative of the row."""
    return scores.masked_fill(~allowed_negatives(keys.rows[tile], keys.row_items[tile], keys.columns), -torch.inf)


def _allowed_for_columns(scores: torch.Tensor, keys: Keys, tile: slice) -> torch.Tensor:
    """Cosines, -inf if the row is no negative of the column."""
    return scores.masked_fill(~allowed_negatives(keys.columns, keys.column_items, keys.rows[tile]).T, -torch.inf)
