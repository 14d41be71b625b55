"""Parquet files and their rows, by row group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.readers.protocol import Part
from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.errors import UserError

_DAMAGE = (OSError, ValueError, NotImplementedError)
"""Base classes of all pyarrow errors."""


def files_with(columns: Mapping[str, str], paths: Sequence[Path]) -> Iterator[tuple[Path, Any]]:
    """The given files, and those of the given folders with their subfolders, each with its `ParquetFile`.

    columns: those that each must have, with the option that names another.

    Raises:
        UserError: pyarrow is not installed, a folder without Parquet files, a file of another kind, or one without a column.
    """
    for given in paths:
        inside = sorted(given.rglob("*.parquet")) if given.is_dir() else [given]
        if not inside:
            raise UserError(
                f"--input {given} holds no .parquet (of a folder of .arrow files, datasets writes one: to_parquet)"
            )
        for path in inside:
            file = _open(path)
            for name, option in columns.items():
                if name not in file.schema_arrow.names:
                    names = ", ".join(file.schema_arrow.names)
                    raise UserError(f"{path} has no column {name!r}; it has {names}: name one with {option}")
            yield path, file


def rows_of(
    part: Part, columns: Sequence[str], report: Report, *, at_once: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, values by column) of the rows of a row group: of all, or of those whose numbers are the part's `items`.

    part: `file`, `row_group`. at_once: rows in memory.
    """
    path, group = Path(part["file"]), part["row_group"]
    wanted = frozenset(part["items"]) if "items" in part else None
    row, last = 0, math.inf if wanted is None else max(wanted, default=-1)
    try:
        for batch in _open(path).iter_batches(at_once, row_groups=[group], columns=list(columns)):
            for i in range(batch.num_rows):
                where = f"{path.name}, row group {group}, row {row}"
                if wanted is None or row in wanted:
                    try:
                        values = {name: batch.column(name)[i].as_py() for name in columns}
                    except UnicodeDecodeError:
                        report.skip("a row that is not UTF-8", where)
                    else:
                        yield where, values
                row += 1
            if row > last:
                return
    except _DAMAGE as error:
        where = f"{path.name}, row group {group}, row {row}"
        report.skip("a row that cannot be read, with all behind it in its group", f"{where}: {error}")


def _open(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow; install it with `pip install pyarrow`") from None
    try:
        return parquet.ParquetFile(path)
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None
