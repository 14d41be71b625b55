"""Locating the lines of huge tables, in which a single field may be half a megabyte of base64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unimo_ds.data.prepare.readers.files import open_file
from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.errors import UserError

_LONGEST_ID = 4096


class Line(NamedTuple):
    offset: int
    size: int
    """In bytes, line end included."""
    name: str
    """The first field."""


def find_lines(path: Path, report: Report, *, header: frozenset[str] = frozenset()) -> Iterator[Line]:
    """Places of all lines, from `FILE.lineidx` beside the table (the offset of each line) if it exists, otherwise by reading
    the table.

    header: values of the first field that mark a header line, which is skipped.

    Raises:
        UserError: unreadable, or an index that does not match the table.
    """
    index = path.with_suffix(".lineidx")
    for line in _indexed(path, index) if index.is_file() else _scanned(path):
        if not line.name:
            report.skip("a line without an id", f"{path.name}, byte {line.offset}")
        elif not (line.offset == 0 and line.name in header):
            yield line


def _scanned(path: Path) -> Iterator[Line]:
    with open_file(path) as stream:
        offset = 0
        for content in stream:
            if content.strip():
                yield Line(offset, len(content), _first_field(content))
            offset += len(content)


def _indexed(path: Path, index: Path) -> Iterator[Line]:
    try:
        offsets = [int(number) for number in index.read_text(encoding="ascii").split()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the line index {index}: {error}; remove it, and the table is read through"
        ) from None
    foreign = UserError(f"{index} does not belong to {path.name}; remove it, and the table is read through")
    with open_file(path) as stream:
        bounds = [*offsets, stream.seek(0, 2)]
        if bounds[0] != 0 or any(start >= end for start, end in itertools.pairwise(bounds)):
            raise foreign
        for start, end in itertools.pairwise(bounds):
            stream.seek(max(start - 1, 0))
            content = stream.read(_LONGEST_ID)
            if start and content[:1] != b"\n":
                raise foreign
            yield Line(start, end - start, _first_field(content[1:] if start else content))


def _first_field(content: bytes) -> str:
    return content[:_LONGEST_ID].partition(b"\t")[0].decode("utf-8", errors="replace").strip()
