"""Text files in parts of some megabytes: lines, a column of a TSV, paragraphs, JSON lines, or articles under headings.

A part is a byte range that starts and ends between two texts, so that many processes can read a file of any size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unimo_ds.data.prepare.readers.files import json_of_line, open_file
from unimo_ds.data.prepare.readers.protocol import Part, Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import is_unicode

PART_BYTES = 4 * 2**20
"""Bytes of text per part: some seconds of work."""
_HEADING = re.compile(r"\s*((?:=\s?)+)(?=[^=\s])(.*[^=\s])\s*((?:\s?=)+)\s*")
_Lines = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class TextFiles(Reader):
    """Texts from files in one of the forms below."""

    settings: ImportSettings
    form: str

    def parts(self, report: Report) -> Iterator[Part]:
        starts_text = {"paragraphs": _is_blank, "headings": _is_heading}.get(self.form)
        for path in self.settings.input:
            with open_file(path) as stream:
                if b"\0" in stream.read(4096):
                    raise UserError(f"{path} is not UTF-8 text: it holds zero bytes; unpack or convert it first")
                stream.seek(0)
                if self.form == "column":
                    _position_of(self.settings.column or "", path, stream.readline())
                start = stream.tell()
                size = stream.seek(0, 2)
                while start < size:
                    end = _boundary(stream, start + PART_BYTES, size, starts_text)
                    yield {"file": str(path), "start": start, "end": end}
                    start = end

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        path = Path(part["file"])
        lines = _lines(path, part["start"], part["end"], report)
        if self.form == "headings":
            found = _paragraphs(_breaks_at_headings(lines, report))
        elif self.form == "paragraphs":
            found = _paragraphs(lines)
        elif self.form == "column":
            found = _column(lines, path, self.settings.column or "", report)
        elif self.form == "json-lines":
            found = _json_lines(lines, path, self.settings.column or "text", report)
        else:
            found = lines
        for offset, text in found:
            if text.strip():
                yield Record(f"{path.name}, byte {offset}", text=text.strip())


def is_heading(line: str) -> bool:
    """Whether a line is a wiki heading: ` = Title = ` as in WikiText, or `== Title ==`."""
    match = _HEADING.fullmatch(line)
    return match is not None and match[1].count("=") == match[3].count("=")


def _is_blank(line: bytes) -> bool:
    return not line.strip()


def _is_heading(line: bytes) -> bool:
    return is_heading(line.decode("utf-8", errors="replace").rstrip("\r\n"))


def _boundary(stream: BinaryIO, wanted: int, size: int, starts_text: Callable[[bytes], bool] | None) -> int:
    """Where a part may end, at or after `wanted`: between two lines, and before one that starts a text."""
    if wanted >= size:
        return size
    # From the byte before, so that a line starting exactly at `wanted` is found.
    stream.seek(wanted - 1)
    stream.readline()
    end = stream.tell()
    while starts_text is not None and end < size:
        line = stream.readline()
        if starts_text(line):
            break
        end = stream.tell()
    return end


def _lines(path: Path, start: int, end: int, report: Report) -> _Lines:
    """(offset, line without its end) of each line of a part; the report names lines that are not UTF-8."""
    with open_file(path) as stream:
        stream.seek(start)
        offset = start
        while offset < end:
            line = stream.readline()
            if not line:
                raise UserError(f"{path} is shorter than when it was first read; do not change inputs during an import")
            try:
                yield offset, line.decode("utf-8-sig" if offset == 0 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                report.skip("a line that is not UTF-8", f"{path.name}, byte {offset}")
            offset += len(line)


def _paragraphs(lines: _Lines) -> _Lines:
    """Lines up to an empty line, joined by spaces."""
    waiting: list[str] = []
    first = 0
    for offset, line in lines:
        if line.strip():
            first = first if waiting else offset
            waiting.append(line.strip())
        elif waiting:
            yield first, " ".join(waiting)
            waiting = []
    if waiting:
        yield first, " ".join(waiting)


def _breaks_at_headings(lines: _Lines, report: Report) -> _Lines:
    """An empty line for each heading (which is left out, since it is not a sentence), and no others."""
    for offset, line in lines:
        if is_heading(line):
            report.count("headings left out")
            yield offset, ""
        elif line.strip():
            yield offset, line


def _position_of(column: str, path: Path, header: bytes) -> int:
    names = header.decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")
    if column not in names:
        raise UserError(f"{path} has no column {column!r} in its first line; it has {', '.join(names)}")
    return names.index(column)


def _column(lines: _Lines, path: Path, column: str, report: Report) -> _Lines:
    with open_file(path) as stream:
        position = _position_of(column, path, stream.readline())
    for offset, line in lines:
        fields = line.split("\t")
        if len(fields) > position:
            yield offset, fields[position]
        else:
            report.skip("a line without the column", f"{path.name}, byte {offset}")


def _json_lines(lines: _Lines, path: Path, key: str, report: Report) -> _Lines:
    for offset, line in lines:
        if not line.strip():
            continue
        name = f"{path.name}, byte {offset}"
        content = json_of_line(line, name, report)
        if content is None:
            continue
        text = content.get(key)
        if not isinstance(text, str):
            report.skip(f"a line without a text {key!r}", name)
        elif is_unicode(text):
            yield offset, text
        else:
            report.skip("a text that is not valid Unicode", name)
