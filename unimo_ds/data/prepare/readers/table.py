"""Captions in a table, one per caption: lines `file<TAB>caption`, rows `file,caption`, or two columns of a wider CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
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
_SEPARATORS = (",", "\t", "|")


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """Lines `file<TAB>caption`."""
    return _annotations(settings, report, _lines, "line", "file<TAB>caption")


def read_csv(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """CSV rows `file,caption`, or two named columns of a table with a header; captions with commas are quoted.

    Columns are separated by whichever of comma, tab and | comes first in the file.
    """
    wanted = (settings.image_column, settings.column)
    rows = _csv_rows if wanted == (None, None) else partial(_named_columns, *wanted)
    return _annotations(settings, report, rows, "row", "file,caption")


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
                f"{path} holds no {noun} of the form {form}; of another format, name it: --format table, csv, lavis, coco ...; "
                "of a CSV with other columns, name two of its header: --image-column, --column"
            )


def _lines(path: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path, report):
        name, *rest = line.split("\t", 1)
        yield number, [name, *(rest[0].rstrip().split("\t") if rest else ())]


def _csv_rows(path: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    first = next((line for _, line in read_lines(path, Report())), "")
    separators = sorted((mark for mark in _SEPARATORS if mark in first), key=first.index)
    rows = csv.reader((f"{line}\n" for _, line in read_lines(path, report)), delimiter=(separators or _SEPARATORS)[0])
    try:
        for columns in rows:
            yield rows.line_num, columns
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num} cannot be read as CSV ({error}); are its quotes closed?") from None


def _named_columns(
    image: str | None, caption: str | None, path: Path, report: Report
) -> Iterator[tuple[int, list[str]]]:
    """The two columns by their names in the header. None: the first for the image, `text` for the caption."""
    rows = _csv_rows(path, report)
    header = [name.strip() for name in next(rows, (0, [""]))[1]]
    places = []
    for option, name in (("--image-column", image or header[0]), ("--column", caption or "text")):
        if name not in header:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(header)}: name one with {option}")
        places.append(header.index(name))
    for number, columns in rows:
        # A row of another length is reported as a whole.
        yield number, [columns[place] for place in places] if len(columns) == len(header) else columns[:1]
