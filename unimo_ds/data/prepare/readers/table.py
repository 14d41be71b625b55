"""Captions in a plain table of lines `file<TAB>caption` or rows `file,caption`, one per caption."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from unimo_ds.data.prepare.readers.captions import captions_of
from unimo_ds.data.prepare.readers.files import read_lines
from unimo_ds.data.prepare.readers.names import clean
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError

_Rows = Callable[[Path, Report], Iterator[tuple[int, list[str]]]]
"""Line numbers with the columns of each line."""


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """Lines `file<TAB>caption`."""
    return _annotations(settings, report, _lines, "line", "file<TAB>caption")


def read_csv(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """CSV rows `file,caption`; captions with commas are quoted."""
    return _annotations(settings, report, _csv_rows, "row", "file,caption")


def _annotations(settings: ImportSettings, report: Report, rows: _Rows, noun: str, form: str) -> Iterator[Annotation]:
    for path in settings.captions:
        is_empty = True
        for number, columns in rows(path, report):
            where = f"{path.name}:{number}"
            if len(columns) == 2 and (name := clean(columns[0])):
                is_empty = False
                yield Annotation((name,), captions_of(columns[1], where, report))
            elif any(column.strip() for column in columns):
                report.skip(f"a {noun} that is not {form}", where)
        if is_empty:
            raise UserError(
                f"{path} holds no {noun} of the form {form}; of another format, name it: --format table, csv, lavis, coco ..."
            )


def _lines(path: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path, report):
        yield number, line.split("\t", 1)


def _csv_rows(path: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(f"{line}\n" for _, line in read_lines(path, report))
    try:
        for columns in rows:
            yield rows.line_num, columns
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num} cannot be read as CSV ({error}); are its quotes closed?") from None
