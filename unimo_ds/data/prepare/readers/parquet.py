"""Texts in Parquet files, such as Hugging Face datasets: one column of strings, read by row group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.readers.protocol import Part, Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError

DEFAULT_COLUMN = "text"
_ROWS = 1024
DAMAGE = (OSError, ValueError, NotImplementedError)
"""Base classes of all pyarrow errors."""


@dataclass(frozen=True)
class ParquetTexts(Reader):
    """The strings of a column. A part is a row group."""

    settings: ImportSettings

    @property
    def column(self) -> str:
        return self.settings.column or DEFAULT_COLUMN

    def parts(self, report: Report) -> Iterator[Part]:
        for path in files_of(self.settings.input):
            file = open_parquet(path)
            if self.column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path} has no column {self.column!r}; it has {names}: name one with --column")
            for number in range(file.num_row_groups):
                yield {"file": str(path), "row_group": number}

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        path = Path(part["file"])
        batches = open_parquet(path).iter_batches(_ROWS, row_groups=[part["row_group"]], columns=[self.column])
        name = f"{path.name}, row group {part['row_group']}, row "
        rows = itertools.count()
        try:
            for batch in batches:
                for scalar, row in zip(batch.column(0), rows, strict=False):
                    try:
                        value = scalar.as_py()
                    except UnicodeDecodeError:
                        report.skip("a row that is not UTF-8", f"{name}{row}")
                        continue
                    if not isinstance(value, str):
                        report.skip("a row without a text", f"{name}{row}")
                    elif value.strip():
                        yield Record(f"{name}{row}", text=value.strip())
        except DAMAGE as error:
            report.skip("a row that cannot be read, with all behind it in its group", f"{name}{next(rows)}: {error}")


def files_of(paths: Sequence[Path]) -> Iterator[Path]:
    """The given files, and those of the given folders with their subfolders."""
    for path in paths:
        inside = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"--input {path} holds no .parquet (of a folder of .arrow files, datasets writes one: to_parquet)"
            )
        yield from inside


def open_parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading Parquet needs pyarrow; install it with `pip install pyarrow`") from None
    try:
        return parquet.ParquetFile(path)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None
