"""Log-sum-exps over shared candidates by the CUDA kernels of `kernels/contrastive/` and cuBLAS: `unimo::contrastive_forward`,
`unimo::contrastive_backward`.

Scores are computed in rectangles (`chunk_of`) by a matrix product into one fp32 buffer; a kernel reads the buffer once, for the
statistics of its rows and, optionally, of its columns. Backward recomputes the rectangle, a kernel turns it into 16-bit weights
in place, and two products take these to the vectors. No full score matrix, no atomics, no host synchronisation; bit-identical
from run to run.

Letters as in `ops/score_blocks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from unimo_ds.ops.native import launcher, library, products
from unimo_ds.ops.score_blocks import Keys, Logs

SMALL_CHUNK, LARGE_CHUNK = (4096, 4096), (8192, 8192)
"""Rows and columns of a rectangle; multiples of TILE_ROWS and TILE_COLUMNS."""
TILE_ROWS = 64
TILE_COLUMNS = 1024
_LARGEST_WEIGHT = 4096.0


class BlockArguments(launcher.Arguments):
    """`BlockArguments` of kernels/contrastive/block.cuh, field by field."""

    _fields_ = (
        *launcher.addresses(
            "scores row_keys column_keys row_items column_items conflicts inverse_temperature weight_scale"
        ),
        *launcher.addresses("row_maxima row_sums column_maxima column_sums row_partials column_partials"),
        *launcher.addresses(
            "row_logs row_gradients column_logs column_gradients temperature_sums row_results column_results"
        ),
        *launcher.integers(
            "num_rows num_columns pitch conflict_stride row_items_width column_items_width item_filter_words"
        ),
        *launcher.integers("begins_rows begins_columns"),
    )


def refusal(vectors: torch.Tensor) -> str | None:
    """Why the kernels cannot take these vectors, None if they can."""
    narrow = vectors.new_empty(0, dtype=torch.float16) if vectors.dtype == torch.float32 else vectors
    return library.refusal(narrow)


def log_sum_exps(
    rows: torch.Tensor, columns: torch.Tensor, inverse_temperature: torch.Tensor, keys: Keys, *, both: bool
) -> Logs:
    """Log-sum-exps of every row over the columns and, if `both`, of every column over the rows.

    rows: [A, D], columns: [B, D], fp16 or bf16, or fp32, which is rounded to fp16 (unit vectors are expected).
    inverse_temperature: fp32 scalar. Differentiable in all three. Callers check `refusal` first.
    """
    return Logs(*contrastive_forward(rows, columns, inverse_temperature, *keys, both))


def gradients(
    row_gradients: torch.Tensor,
    column_gradients: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    inverse_temperature: torch.Tensor,
    keys: Keys,
    row_logs: torch.Tensor,
    column_logs: torch.Tensor,
    *,
    both: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `score_blocks.gradients`; gradients of the vectors are fp32."""
    vectors = (rows, columns, inverse_temperature)
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = contrastive_backward(
        row_gradients, column_gradients, *vectors, *keys, row_logs, column_logs, both, True
    )
    return found


def chunk_of(rows: torch.Tensor, columns: torch.Tensor, *, both: bool) -> tuple[int, int]:
    """Rows and columns of the rectangles for these vectors.

    Large ones are faster (docs/kernels.md), but their buffer is most of the loss's memory. So they are used only for both
    directions, if backward's sums (fp32 for columns, 16-bit for rows) are at least as large as the buffer.
    """
    sums = 4 * columns.numel() + 2 * rows.numel()
    return LARGE_CHUNK if both and 4 * math.prod(LARGE_CHUNK) <= sums else SMALL_CHUNK


def narrow(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors in the kernels' format: fp32 becomes fp16."""
    return (vectors.half() if vectors.dtype == torch.float32 else vectors).contiguous()


def _tiles(number: int, size: int) -> int:
    return -(-number // size)


class _Walk:
    """The rectangles of one score matrix, one after another in one buffer, and the kernels' arguments for each.

    Views and addresses are made once: the host's work per rectangle is some ten microseconds, less than the GPU's.
    """

    def __init__(
        self, rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, keys: Keys, column_logs: torch.Tensor
    ) -> None:
        """column_logs: [B] statistics of columns, running or final; empty if columns are no queries."""
        self.chunk = chunk_of(rows, columns, both=len(column_logs) > 0)
        self.row_parts, self.column_parts = torch.split(rows, self.chunk[0]), torch.split(columns, self.chunk[1])
        height, pitch = len(self.row_parts[0]), 8 * _tiles(len(self.column_parts[0]), 8)
        self.scores = rows.new_empty((height, pitch), dtype=torch.float32)
        self.conflicts = rows.new_empty((_tiles(len(rows), TILE_ROWS), _tiles(len(columns), 32)), dtype=torch.int32)
        # Kept alive here: the structure has only their addresses.
        keys = Keys(*(tensor.contiguous() for tensor in keys))
        self.by_row: dict[str, torch.Tensor] = {"row_keys": keys.rows, "row_items": keys.row_items}
        self.by_column: dict[str, torch.Tensor] = {"column_keys": keys.columns, "column_items": keys.column_items}
        self.arguments = BlockArguments(
            scores=self.scores,
            conflicts=self.conflicts,
            inverse_temperature=inverse,
            column_maxima=column_logs if len(column_logs) else None,
            num_rows=len(rows),
            num_columns=len(columns),
            pitch=pitch,
            conflict_stride=self.conflicts.shape[1],
            row_items_width=keys.row_items.shape[1],
            column_items_width=keys.column_items.shape[1],
            **self.by_row,
            **self.by_column,
        )
        launcher.bound("unimo_contrastive_conflicts", rows)(self.arguments)

    def rectangles(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Fill the buffer with each rectangle's cosines and set `arguments` for it.

        Yields the indices of its row and column part, and a view of its 16-bit weights, valid once the kernel has run.
        """
        arguments = self.arguments
        transposed = [part.T for part in self.column_parts]
        chunk_rows, chunk_columns = self.chunk
        of_rows, of_columns = _steps(self.by_row, chunk_rows), _steps(self.by_column, chunk_columns)
        narrow = self.scores.view(self.row_parts[0].dtype)
        for row, row_part in enumerate(self.row_parts):
            arguments.num_rows = height = len(row_part)
            arguments.begins_columns = row == 0
            for name, base, step in of_rows:
                setattr(arguments, name, base + row * step)
            conflicts = self.conflicts.data_ptr() + row * (chunk_rows // TILE_ROWS) * self.conflicts.shape[1] * 4
            buffer = weights = None
            for column, column_part in enumerate(transposed):
                width = column_part.shape[1]
                if buffer is None or width != arguments.num_columns:
                    buffer, weights = self.scores[:height, :width], narrow[:height, :width]
                arguments.num_columns = width
                arguments.begins_rows = column == 0
                for name, base, step in of_columns:
                    setattr(arguments, name, base + column * step)
                arguments.conflicts = conflicts + column * (chunk_columns // 32) * 4
                products.multiply(row_part, column_part, buffer)
                assert weights is not None
                yield row, column, weights


def _steps(tensors: dict[str, torch.Tensor], chunk: int) -> list[tuple[str, int, int]]:
    """Name, address and stride in bytes from one part to the next, for each tensor."""
    return [
        (name, tensor.data_ptr(), chunk * tensor.stride(0) * tensor.element_size()) for name, tensor in tensors.items()
    ]


def _forward(
    rows: torch.Tensor,
    columns: torch.Tensor,
    inverse_temperature: torch.Tensor,
    *keys_and_both: Any,
) -> Logs:
    *keys, both = keys_and_both
    rows, columns, inverse = narrow(rows), narrow(columns), inverse_temperature.float()
    logs = Logs(*_forward_shapes(rows, columns, inverse, both))
    if not len(rows) or not len(columns):
        return Logs(*(tensor.fill_(-torch.inf) for tensor in logs))
    walk = _Walk(rows, columns, inverse, Keys(*keys), logs.best_columns)
    row_sums, column_sums = torch.empty_like(logs.rows), torch.empty_like(logs.columns)
    walk.by_row |= {"row_maxima": logs.best_rows, "row_sums": row_sums, "row_results": logs.rows}
    height, pitch = walk.scores.shape
    row_partials = row_sums.new_empty((_tiles(pitch, TILE_COLUMNS), height, 2))
    walk.arguments.set(row_partials=row_partials)
    if both:
        walk.by_column |= {
            "column_maxima": logs.best_columns,
            "column_sums": column_sums,
            "column_results": logs.columns,
        }
        column_partials = row_sums.new_empty((_tiles(height, TILE_ROWS), pitch, 2))
        walk.arguments.set(column_partials=column_partials)
    take_statistics = launcher.bound("unimo_contrastive_statistics", rows)
    for _ in walk.rectangles():
        take_statistics(walk.arguments)
    return logs


def _forward_shapes(
    rows: torch.Tensor, columns: torch.Tensor, inverse_temperature: torch.Tensor, *keys_and_both: Any
) -> tuple[torch.Tensor, ...]:
    num_columns = columns.shape[0] if keys_and_both[-1] else 0
    sizes = (rows.shape[0], rows.shape[0], num_columns, num_columns)
    return tuple(rows.new_empty((size,), dtype=torch.float32) for size in sizes)


def _backward(
    row_gradients: torch.Tensor,
    column_gradients: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    inverse_temperature: torch.Tensor,
    *rest: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    *keys, row_logs, column_logs, both, wide = rest
    if not len(rows) or not len(columns):
        shapes = _backward_shapes(row_gradients, column_gradients, rows, columns, inverse_temperature, wide)
        return shapes[0].zero_(), shapes[1].zero_(), shapes[2].zero_()
    of_rows, of_columns = row_gradients.float().contiguous(), column_gradients.float().contiguous()
    # Scaled so that the largest weight is near _LARGEST_WEIGHT: fp16 then holds weights 10^11 times smaller; `back` undoes it.
    largest = torch.cat((of_rows, of_columns)).abs().amax() if both else of_rows.abs().amax()
    scale = _LARGEST_WEIGHT / largest.clamp(min=1e-30)
    inverse = inverse_temperature.float()
    back = inverse / scale
    narrow_rows, narrow_columns = narrow(rows), narrow(columns)
    walk = _Walk(narrow_rows, narrow_columns, inverse, Keys(*keys), column_logs)
    temperature_sums = torch.empty_like(row_logs)
    walk.arguments.set(weight_scale=scale)
    walk.by_row |= {"row_logs": row_logs, "row_gradients": of_rows, "temperature_sums": temperature_sums}
    if both:
        walk.by_column |= {"column_logs": column_logs, "column_gradients": of_columns}
    dtype = torch.float32 if wide else rows.dtype
    to_rows, column_sums = _carry(walk, back, narrow_rows, narrow_columns, dtype)
    del walk  # frees its buffer before the result is allocated
    to_columns = column_sums if wide else torch.empty_like(column_sums, dtype=columns.dtype)
    torch.mul(column_sums, back, out=to_columns)
    to_inverse = inverse_temperature.new_empty(inverse_temperature.shape)
    torch.div(temperature_sums.sum(), scale, out=to_inverse)
    return to_rows, to_columns, to_inverse


def _carry(
    walk: _Walk, back: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients from weights: ([A, D] of the rows, times `back`; [B, D] fp32 sums for the columns, without it)."""
    weigh, add = launcher.bound("unimo_contrastive_weights", rows), products.adder(rows)
    to_rows, column_sums = (
        vectors.new_empty(vectors.shape, dtype=kind) for vectors, kind in ((rows, dtype), (columns, torch.float32))
    )
    row_results, column_results = torch.split(to_rows, walk.chunk[0]), torch.split(column_sums, walk.chunk[1])
    row_sums = block = torch.empty_like(walk.row_parts[0], dtype=torch.float32)
    for row, column, weights in walk.rectangles():
        weigh(walk.arguments)
        if column == 0:
            block = row_sums[: len(row_results[row])]
        add(weights, walk.column_parts[column], block, column == 0)
        add(weights.T, walk.row_parts[row], column_results[column], row == 0)
        if column + 1 == len(column_results):
            torch.mul(block, back, out=row_results[row])
    return to_rows, column_sums


def _backward_shapes(
    _: torch.Tensor, __: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = rest[-1]
    to_rows, to_columns = (
        vectors.new_empty(vectors.shape, dtype=torch.float32 if wide else vectors.dtype) for vectors in (rows, columns)
    )
    return to_rows, to_columns, inverse.new_empty(inverse.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.both = inputs
    row_logs, best_rows, column_logs, best_columns = output
    ctx.save_for_backward(*tensors, row_logs, column_logs)
    ctx.mark_non_differentiable(best_rows, best_columns)


def _derivative(ctx: Any, of_rows: torch.Tensor, _: Any, of_columns: torch.Tensor, __: Any) -> tuple[Any, ...]:
    rows, *rest = ctx.saved_tensors  # once: checkpointing gives them only once
    found = contrastive_backward(of_rows, of_columns, rows, *rest, ctx.both, rows.dtype == torch.float32)
    return *found, None, None, None, None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
_KEYS = "Tensor row_keys, Tensor column_keys, Tensor row_items, Tensor column_items"
contrastive_forward = launcher.Operator(
    _OPERATORS,
    f"contrastive_forward(Tensor rows, Tensor columns, Tensor inverse_temperature, {_KEYS}, bool both)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
    derivative=_derivative,
    save=_save,
)
contrastive_backward = launcher.Operator(
    _OPERATORS,
    "contrastive_backward(Tensor row_gradients, Tensor column_gradients, Tensor rows, Tensor columns,"
    f" Tensor inverse_temperature, {_KEYS}, Tensor row_logs, Tensor column_logs, bool both, bool wide)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
