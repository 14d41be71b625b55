"""Log-sum-exps over shared candidates by the CUDA kernels of `kernels/contrastive/` and cuBLAS: `unimo::contrastive_forward`,
`unimo::contrastive_backward`.

Scores are made in rectangles of CHUNK_ROWS x CHUNK_COLUMNS by a matrix product into one fp32 buffer; a kernel reads the buffer
once, for the statistics of its rows and, where asked, of its columns. Backward makes the rectangle again, a kernel turns it into
16-bit weights in place, and two products carry them to the vectors. No score matrix, no atomics, no synchronisation with the
host; the same bits every run.

Letters: A row vectors, B column vectors, D vector size, k items of their own that a row or a column has among the others.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch

from unimo_ds.ops.native import launcher, products

CHUNK_ROWS = 4096
CHUNK_COLUMNS = 4096
TILE_ROWS = 64
TILE_COLUMNS = 1024
_LARGEST_WEIGHT = 4096.0
_NUM_KEYS = 4


class BlockArguments(ctypes.Structure):
    """`BlockArguments` of kernels/contrastive/block.cuh, field by field."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "scores",
                "row_keys",
                "column_keys",
                "row_items",
                "column_items",
                "conflicts",
                "inverse_temperature",
                "weight_scale",
                "row_maxima",
                "row_sums",
                "column_maxima",
                "column_sums",
                "row_partials",
                "column_partials",
                "row_logs",
                "row_gradients",
                "column_logs",
                "column_gradients",
                "temperature_sums",
            )
        ),
        *(
            (name, ctypes.c_int)
            for name in (
                "num_rows",
                "num_columns",
                "pitch",
                "conflict_stride",
                "row_items_width",
                "column_items_width",
                "item_filter_words",
            )
        ),
    )


class Keys(NamedTuple):
    """Who may be whose negative: see `ops/contrastive.py`."""

    rows: torch.Tensor
    """[A, 4] int64: group, image key, text key, key of the item itself."""
    columns: torch.Tensor
    """[B, 4]"""
    row_items: torch.Tensor
    """[A, k] int64: keys of columns' items that are the row's own."""
    column_items: torch.Tensor
    """[B, k] keys of rows' items that are the column's own; read where columns are queries too."""


class Logs(NamedTuple):
    """Per row, and per column where columns are queries too (else empty)."""

    rows: torch.Tensor
    """[A] fp32 log of the sum over allowed columns of exp(cosine / temperature); -inf where there is none."""
    best_rows: torch.Tensor
    """[A] the highest cosine."""
    columns: torch.Tensor
    best_columns: torch.Tensor
    conflicts: torch.Tensor
    """For the backward pass."""


def log_sum_exps(
    rows: torch.Tensor, columns: torch.Tensor, inverse_temperature: torch.Tensor, keys: Keys, *, both: bool
) -> Logs:
    """Log-sum-exps of every row over the columns and, where `both`, of every column over the rows.

    rows: [A, D], columns: [B, D], fp16 or bf16, or fp32, which is rounded to fp16: they are meant to be unit vectors.
    inverse_temperature: fp32 scalar. Differentiable in all three. Callers ask `library.refusal` first.
    """
    return Logs(*torch.ops.unimo.contrastive_forward(rows, columns, inverse_temperature, *keys, both))


def _narrow(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors.half() if vectors.dtype == torch.float32 else vectors).contiguous()


def _chunks(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class _Walk:
    """The rectangles of one score matrix: the buffer, and the kernels' arguments at each of them."""

    def __init__(
        self, rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, keys: Keys, conflicts: torch.Tensor
    ) -> None:
        self.rows, self.columns = rows, columns
        self.row_chunks = _chunks(len(rows), CHUNK_ROWS)
        self.column_chunks = _chunks(len(columns), CHUNK_COLUMNS)
        self.height = min(CHUNK_ROWS, len(rows))
        self.pitch = _round_up(min(CHUNK_COLUMNS, len(columns)), 8)
        self.scores = rows.new_empty((self.height, self.pitch), dtype=torch.float32)
        # Held here: the structure has their addresses alone.
        self.by_row: dict[str, torch.Tensor] = {"row_keys": keys.rows, "row_items": keys.row_items}
        self.by_column: dict[str, torch.Tensor] = {"column_keys": keys.columns, "column_items": keys.column_items}
        self.conflicts = conflicts
        self.arguments = BlockArguments(
            scores=self.scores.data_ptr(),
            inverse_temperature=inverse.data_ptr(),
            pitch=self.pitch,
            conflict_stride=conflicts.shape[1],
            row_items_width=keys.row_items.shape[1],
            column_items_width=keys.column_items.shape[1],
        )

    def whole(self) -> BlockArguments:
        """Arguments for the whole matrix."""
        return self._at(slice(0, len(self.rows)), slice(0, len(self.columns)))

    def score(self, row_chunk: slice, column_chunk: slice) -> BlockArguments:
        """Fill the buffer with a rectangle's cosines. Returns the arguments for it."""
        products.multiply(self.rows[row_chunk], self.columns[column_chunk].T, self._buffer(row_chunk, column_chunk))
        return self._at(row_chunk, column_chunk)

    def weights(self, row_chunk: slice, column_chunk: slice) -> torch.Tensor:
        """The 16-bit weights that took the cosines' place in the buffer."""
        narrow = self.scores.view(self.rows.dtype)
        return narrow[: row_chunk.stop - row_chunk.start, : column_chunk.stop - column_chunk.start]

    def _buffer(self, row_chunk: slice, column_chunk: slice) -> torch.Tensor:
        return self.scores[: row_chunk.stop - row_chunk.start, : column_chunk.stop - column_chunk.start]

    def _at(self, row_chunk: slice, column_chunk: slice) -> BlockArguments:
        arguments = self.arguments
        for chunk, tensors in ((row_chunk, self.by_row), (column_chunk, self.by_column)):
            for name, tensor in tensors.items():
                setattr(arguments, name, tensor.data_ptr() + chunk.start * tensor.stride(0) * tensor.element_size())
        place = row_chunk.start // TILE_ROWS * self.conflicts.shape[1] + column_chunk.start // 32
        arguments.conflicts = self.conflicts.data_ptr() + 4 * place
        arguments.num_rows = row_chunk.stop - row_chunk.start
        arguments.num_columns = column_chunk.stop - column_chunk.start
        return arguments


def _forward(
    rows: torch.Tensor,
    columns: torch.Tensor,
    inverse_temperature: torch.Tensor,
    row_keys: torch.Tensor,
    column_keys: torch.Tensor,
    row_items: torch.Tensor,
    column_items: torch.Tensor,
    both: bool,
) -> Logs:
    rows, columns, inverse = _narrow(rows), _narrow(columns), inverse_temperature.float()
    keys = Keys(*(tensor.contiguous() for tensor in (row_keys, column_keys, row_items, column_items)))
    num_columns = len(columns) if both else 0
    row_maxima = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)
    column_maxima = rows.new_full((num_columns,), -torch.inf, dtype=torch.float32)
    row_sums, column_sums = torch.zeros_like(row_maxima), torch.zeros_like(column_maxima)
    conflicts = _conflicts(rows, columns)
    if len(rows) and len(columns):
        walk = _Walk(rows, columns, inverse, keys, conflicts)
        walk.by_row |= {"row_maxima": row_maxima, "row_sums": row_sums}
        row_partials = rows.new_empty((-(-walk.pitch // TILE_COLUMNS), walk.height, 2), dtype=torch.float32)
        walk.arguments.row_partials = row_partials.data_ptr()
        if both:
            walk.by_column |= {"column_maxima": column_maxima, "column_sums": column_sums}
            column_partials = rows.new_empty((-(-walk.height // TILE_ROWS), walk.pitch, 2), dtype=torch.float32)
            walk.arguments.column_partials = column_partials.data_ptr()
        launcher.bound("unimo_contrastive_conflicts", rows)(walk.whole())
        statistics = launcher.bound("unimo_contrastive_statistics", rows)
        for row_chunk in walk.row_chunks:
            for column_chunk in walk.column_chunks:
                statistics(walk.score(row_chunk, column_chunk))
    return Logs(
        _logs(row_maxima, row_sums, inverse),
        row_maxima,
        _logs(column_maxima, column_sums, inverse),
        column_maxima,
        conflicts,
    )


def _logs(maxima: torch.Tensor, sums: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return torch.where(maxima.isinf(), -torch.inf, maxima * inverse + torch.log(sums))


def _conflicts(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return rows.new_empty((-(-len(rows) // TILE_ROWS), -(-len(columns) // 32)), dtype=torch.int32)


def _forward_shapes(
    rows: torch.Tensor, columns: torch.Tensor, inverse_temperature: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    of_rows = [rows.new_empty((rows.shape[0],), dtype=torch.float32) for _ in range(2)]
    num_columns = columns.shape[0] if rest[-1] else 0
    of_columns = [rows.new_empty((num_columns,), dtype=torch.float32) for _ in range(2)]
    conflicts = rows.new_empty((-(-rows.shape[0] // TILE_ROWS), -(-columns.shape[0] // 32)), dtype=torch.int32)
    return (*of_rows, *of_columns, conflicts)


def _backward(
    row_gradients: torch.Tensor,
    column_gradients: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    inverse_temperature: torch.Tensor,
    row_keys: torch.Tensor,
    column_keys: torch.Tensor,
    row_items: torch.Tensor,
    column_items: torch.Tensor,
    row_logs: torch.Tensor,
    column_logs: torch.Tensor,
    conflicts: torch.Tensor,
    both: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    to_rows, to_inverse = (
        torch.empty_like(rows, memory_format=torch.contiguous_format),
        inverse_temperature.new_zeros(()),
    )
    if not len(rows) or not len(columns):
        return to_rows.zero_(), torch.zeros_like(columns), to_inverse
    narrow_rows, narrow_columns, inverse = _narrow(rows), _narrow(columns), inverse_temperature.float()
    keys = Keys(*(tensor.contiguous() for tensor in (row_keys, column_keys, row_items, column_items)))
    of_rows, of_columns = row_gradients.float().contiguous(), column_gradients.float().contiguous()
    largest = torch.cat((of_rows, of_columns)).abs().amax() if both else of_rows.abs().amax()
    scale = _LARGEST_WEIGHT / largest.clamp(min=1e-30)
    temperature_sums = torch.zeros_like(row_logs)
    walk = _Walk(narrow_rows, narrow_columns, inverse, keys, conflicts)
    walk.arguments.weight_scale = scale.data_ptr()
    walk.by_row |= {"row_logs": row_logs, "row_gradients": of_rows, "temperature_sums": temperature_sums}
    if both:
        walk.by_column |= {"column_logs": column_logs, "column_gradients": of_columns}
    weigh = launcher.bound("unimo_contrastive_weights", narrow_rows)
    back = inverse / scale
    column_sums = torch.empty(columns.shape, dtype=torch.float32, device=columns.device)
    row_sums = rows.new_empty((walk.height, rows.shape[1]), dtype=torch.float32)
    for row_chunk in walk.row_chunks:
        block = row_sums[: row_chunk.stop - row_chunk.start]
        for column_chunk in walk.column_chunks:
            weigh(walk.score(row_chunk, column_chunk))
            weights = walk.weights(row_chunk, column_chunk)
            products.multiply_add(weights, narrow_columns[column_chunk], block, fresh=column_chunk.start == 0)
            products.multiply_add(
                weights.T, narrow_rows[row_chunk], column_sums[column_chunk], fresh=row_chunk.start == 0
            )
        torch.mul(block, back, out=to_rows[row_chunk])
    to_columns = (
        column_sums.mul_(back) if columns.dtype == torch.float32 else (column_sums.mul_(back)).to(columns.dtype)
    )
    return to_rows, to_columns, (temperature_sums.sum() / scale).to(to_inverse.dtype).reshape(inverse_temperature.shape)


def _backward_shapes(
    _: torch.Tensor, __: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, *___: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rows.new_empty(rows.shape), columns.new_empty(columns.shape), inverse.new_empty(inverse.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.both = inputs
    row_logs, best_rows, column_logs, best_columns, conflicts = output
    ctx.save_for_backward(*tensors, row_logs, column_logs, conflicts)
    ctx.mark_non_differentiable(best_rows, best_columns, conflicts)


def _derivative(ctx: Any, of_rows: torch.Tensor, _: Any, of_columns: torch.Tensor, *__: Any) -> tuple[Any, ...]:
    to_rows, to_columns, to_inverse = torch.ops.unimo.contrastive_backward(
        of_rows, of_columns, *ctx.saved_tensors, ctx.both
    )
    return to_rows, to_columns, to_inverse, None, None, None, None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
_KEYS = "Tensor row_keys, Tensor column_keys, Tensor row_items, Tensor column_items"
launcher.define(
    _OPERATORS,
    f"contrastive_forward(Tensor rows, Tensor columns, Tensor inverse_temperature, {_KEYS}, bool both)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
launcher.define(
    _OPERATORS,
    "contrastive_backward(Tensor row_gradients, Tensor column_gradients, Tensor rows, Tensor columns,"
    f" Tensor inverse_temperature, {_KEYS}, Tensor row_logs, Tensor column_logs, Tensor conflicts, bool both)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
torch.library.register_autograd("unimo::contrastive_forward", _derivative, setup_context=_save, lib=_OPERATORS)
