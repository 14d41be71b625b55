"""Texts in Parquet files, such as Hugging Face datasets: one column of strings, read by row group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unimo_ds.data.prepare.readers.parquet_files import files_with, rows_of
from unimo_ds.data.prepare.readers.protocol import Part, Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings

DEFAULT_COLUMN = "text"
_ROWS = 1024


@dataclass(frozen=True)
class ParquetTexts(Reader):
    """The strings of a column. A part is a row group."""

    settings: ImportSettings

    @property
    def column(self) -> str:
        return self.settings.column or DEFAULT_COLUMN

    def parts(self, report: Report) -> Iterator[Part]:
        for path, file in files_with({self.column: "--column"}, self.settings.input):
            for number in range(file.num_row_groups):
                yield {"file": str(path), "row_group": number}

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        for where, row in rows_of(part, [self.column], report, at_once=_ROWS):
            value = row[self.column]
            if not isinstance(value, str):
                report.skip("a row without a text", where)
            elif value.strip():
                yield Record(where, text=value.strip())
