"""Log-sum-exps over shared candidates by the CUDA kernels of `kernels/contrastive/` and cuBLAS: `unimo::contrastive_forward`,
`unimo::contrastive_backward`.

Scores are made in rectangles of CHUNK_ROWS x CHUNK_COLUMNS by a matrix product into one fp32 buffer; a kernel reads the buffer
once, for the statistics of its rows and, where asked, of its columns. Backward makes the rectangle again, a kernel turns it into
16-bit weights in place, and two products carry them to the vectors. No score matrix, no atomics, no synchronisation with the
host; the same bits every run.

Letters as in `ops/score_blocks.py`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from unimo_ds.ops.native import launcher, library, products
from unimo_ds.ops.score_blocks import Keys, Logs

CHUNK_ROWS = 4096
CHUNK_COLUMNS = 4096
TILE_ROWS = 64
TILE_COLUMNS = 1024
_LARGEST_WEIGHT = 4096.0


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


def refusal(vectors: torch.Tensor, *, may_build: bool = False) -> str | None:
    """Why the kernels cannot take these vectors, None where they can. may_build: compile a missing library."""
    narrow = vectors.new_empty(0, dtype=torch.float16) if vectors.dtype == torch.float32 else vectors
    return library.refusal(narrow, may_build=may_build)


def log_sum_exps(
    rows: torch.Tensor, columns: torch.Tensor, inverse_temperature: torch.Tensor, keys: Keys, *, both: bool
) -> Logs:
    """Log-sum-exps of every row over the columns and, where `both`, of every column over the rows.

    rows: [A, D], columns: [B, D], fp16 or bf16, or fp32, which is rounded to fp16: they are meant to be unit vectors.
    inverse_temperature: fp32 scalar. Differentiable in all three. Callers ask `refusal` first.
    """
    return Logs(*torch.ops.unimo.contrastive_forward(rows, columns, inverse_temperature, *keys, both))


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
    """See `score_blocks.gradients`; those of the vectors are fp32."""
    vectors = (rows, columns, inverse_temperature)
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.unimo.contrastive_backward(
        row_gradients, column_gradients, *vectors, *keys, row_logs, column_logs, both, True
    )
    return found


def narrow(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors as the kernels take them: fp32 becomes fp16."""
    return (vectors.half() if vectors.dtype == torch.float32 else vectors).contiguous()


def _chunks(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _length(chunk: slice) -> int:
    return int(chunk.stop - chunk.start)


def _tiles(number: int, size: int) -> int:
    return -(-number // size)


class _Walk:
    """The rectangles of one score matrix: the buffer, and the kernels' arguments at each of them."""

    def __init__(
        self, rows: torch.Tensor, columns: torch.Tensor, inverse: torch.Tensor, keys: Keys, column_logs: torch.Tensor
    ) -> None:
        """column_logs: [B] statistics of columns, running or final; empty where columns are no queries."""
        self.rows, self.columns = rows, columns
        self.row_chunks = _chunks(len(rows), CHUNK_ROWS)
        self.column_chunks = _chunks(len(columns), CHUNK_COLUMNS)
        self.height = min(CHUNK_ROWS, len(rows))
        self.pitch = 8 * _tiles(min(CHUNK_COLUMNS, len(columns)), 8)
        self.scores = rows.new_empty((self.height, self.pitch), dtype=torch.float32)
        self.conflicts = rows.new_empty((_tiles(len(rows), TILE_ROWS), _tiles(len(columns), 32)), dtype=torch.int32)
        # Held here: the structure has their addresses alone.
        keys = Keys(*(tensor.contiguous() for tensor in keys))
        self.by_row: dict[str, torch.Tensor] = {"row_keys": keys.rows, "row_items": keys.row_items}
        self.by_column: dict[str, torch.Tensor] = {"column_keys": keys.columns, "column_items": keys.column_items}
        self.arguments = BlockArguments(
            scores=self.scores.data_ptr(),
            inverse_temperature=inverse.data_ptr(),
            column_maxima=column_logs.data_ptr() if len(column_logs) else None,
            pitch=self.pitch,
            conflict_stride=self.conflicts.shape[1],
            row_items_width=keys.row_items.shape[1],
            column_items_width=keys.column_items.shape[1],
        )
        launcher.bound("unimo_contrastive_conflicts", rows)(self._at(slice(0, len(rows)), slice(0, len(columns))))

    def score(self, row_chunk: slice, column_chunk: slice) -> BlockArguments:
        """Fill the buffer with a rectangle's cosines. Returns the arguments for it."""
        buffer = self.scores[: _length(row_chunk), : _length(column_chunk)]
        products.multiply(self.rows[row_chunk], self.columns[column_chunk].T, buffer)
        return self._at(row_chunk, column_chunk)

    def weights(self, row_chunk: slice, column_chunk: slice) -> torch.Tensor:
        """The 16-bit weights that took the cosines' place in the buffer."""
        return self.scores.view(self.rows.dtype)[: _length(row_chunk), : _length(column_chunk)]

    def _at(self, row_chunk: slice, column_chunk: slice) -> BlockArguments:
        arguments = self.arguments
        for chunk, tensors in ((row_chunk, self.by_row), (column_chunk, self.by_column)):
            for name, tensor in tensors.items():
                setattr(arguments, name, tensor.data_ptr() + chunk.start * tensor.stride(0) * tensor.element_size())
        place = row_chunk.start // TILE_ROWS * self.conflicts.shape[1] + column_chunk.start // 32
        arguments.conflicts = self.conflicts.data_ptr() + 4 * place
        arguments.num_rows, arguments.num_columns = _length(row_chunk), _length(column_chunk)
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
    rows, columns, inverse = narrow(rows), narrow(columns), inverse_temperature.float()
    num_columns = len(columns) if both else 0
    row_maxima = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)
    column_maxima = rows.new_full((num_columns,), -torch.inf, dtype=torch.float32)
    row_sums, column_sums = torch.zeros_like(row_maxima), torch.zeros_like(column_maxima)
    if len(rows) and len(columns):
        walk = _Walk(rows, columns, inverse, Keys(row_keys, column_keys, row_items, column_items), column_maxima)
        walk.by_row |= {"row_maxima": row_maxima, "row_sums": row_sums}
        row_partials = row_maxima.new_empty((_tiles(walk.pitch, TILE_COLUMNS), walk.height, 2))
        walk.arguments.row_partials = row_partials.data_ptr()
        if both:
            walk.by_column |= {"column_maxima": column_maxima, "column_sums": column_sums}
            column_partials = row_maxima.new_empty((_tiles(walk.height, TILE_ROWS), walk.pitch, 2))
            walk.arguments.column_partials = column_partials.data_ptr()
        take_statistics = launcher.bound("unimo_contrastive_statistics", rows)
        for row_chunk in walk.row_chunks:
            for column_chunk in walk.column_chunks:
                take_statistics(walk.score(row_chunk, column_chunk))
    logs = [
        torch.where(maxima.isinf(), -torch.inf, maxima * inverse + torch.log(sums))
        for maxima, sums in ((row_maxima, row_sums), (column_maxima, column_sums))
    ]
    return Logs(logs[0], row_maxima, logs[1], column_maxima)


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
    row_keys: torch.Tensor,
    column_keys: torch.Tensor,
    row_items: torch.Tensor,
    column_items: torch.Tensor,
    row_logs: torch.Tensor,
    column_logs: torch.Tensor,
    both: bool,
    wide: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    to_rows, to_columns, to_inverse = _backward_shapes(
        row_gradients, column_gradients, rows, columns, inverse_temperature, wide
    )
    if not len(rows) or not len(columns):
        return to_rows.zero_(), to_columns.zero_(), to_inverse.zero_()
    rows, columns, inverse = narrow(rows), narrow(columns), inverse_temperature.float()
    of_rows, of_columns = row_gradients.float().contiguous(), column_gradients.float().contiguous()
    # The largest weight is near _LARGEST_WEIGHT, so that fp16 holds those 10^11 times smaller; `back` undoes it.
    largest = torch.cat((of_rows, of_columns)).abs().amax() if both else of_rows.abs().amax()
    scale = _LARGEST_WEIGHT / largest.clamp(min=1e-30)
    back = inverse / scale
    temperature_sums = torch.zeros_like(row_logs)

    walk = _Walk(rows, columns, inverse, Keys(row_keys, column_keys, row_items, column_items), column_logs)
    walk.arguments.weight_scale = scale.data_ptr()
    walk.by_row |= {"row_logs": row_logs, "row_gradients": of_rows, "temperature_sums": temperature_sums}
    if both:
        walk.by_column |= {"column_logs": column_logs, "column_gradients": of_columns}
    weigh = launcher.bound("unimo_contrastive_weights", rows)
    column_sums = to_columns if wide else to_columns.new_empty(to_columns.shape, dtype=torch.float32)
    row_sums = column_sums.new_empty((walk.height, rows.shape[1]))
    for row_chunk in walk.row_chunks:
        block = row_sums[: _length(row_chunk)]
        for column_chunk in walk.column_chunks:
            weigh(walk.score(row_chunk, column_chunk))
            weights = walk.weights(row_chunk, column_chunk)
            products.multiply_add(weights, columns[column_chunk], block, fresh=column_chunk.start == 0)
            products.multiply_add(weights.T, rows[row_chunk], column_sums[column_chunk], fresh=row_chunk.start == 0)
        torch.mul(block, back, out=to_rows[row_chunk])
    torch.mul(column_sums, back, out=to_columns)
    torch.div(temperature_sums.sum(), scale, out=to_inverse)
    return to_rows, to_columns, to_inverse


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
    wide = ctx.saved_tensors[0].dtype == torch.float32
    found = torch.ops.unimo.contrastive_backward(of_rows, of_columns, *ctx.saved_tensors, ctx.both, wide)
    return *found, None, None, None, None, None


_OPERATORS = torch.library.Library("unimo", "FRAGMENT")  # type: ignore[no-untyped-call]
_KEYS = "Tensor row_keys, Tensor column_keys, Tensor row_items, Tensor column_items"
launcher.define(
    _OPERATORS,
    f"contrastive_forward(Tensor rows, Tensor columns, Tensor inverse_temperature, {_KEYS}, bool both)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
launcher.define(
    _OPERATORS,
    "contrastive_backward(Tensor row_gradients, Tensor column_gradients, Tensor rows, Tensor columns,"
    f" Tensor inverse_temperature, {_KEYS}, Tensor row_logs, Tensor column_logs, bool both, bool wide)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
torch.library.register_autograd("unimo::contrastive_forward", _derivative, setup_context=_save, lib=_OPERATORS)
