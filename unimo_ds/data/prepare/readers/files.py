"""Reads the files of a corpus; each failure is one sentence."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unimo_ds.data.prepare.report import Report
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError


def open_file(path: Path) -> BinaryIO:
    """
    Raises:
        UserError: it cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_extent(stream: BinaryIO, path: Path, offset: int, size: int) -> bytes:
    """
    Raises:
        UserError: the file ends earlier.
    """
    stream.seek(offset)
    content = stream.read(size)
    if len(content) < size:
        raise UserError(f"{path} is shorter than when it was first read; do not change inputs during an import")
    return content


def read_lines(path: Path, report: Report | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file.

    report: lists lines that are not UTF-8, which are skipped; None: they are errors.

    Raises:
        UserError: the file cannot be read, or is UTF-16, or, without a report, a line is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise UserError(f"{path} is UTF-16, not UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`")
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    if report is None:
                        raise UserError(f"{path}:{number} is not UTF-8; convert the file") from None
                    report.skip("a line that is not UTF-8", f"{path.name}:{number}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: it cannot be read or parsed.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}; fetch it again") from None


def json_of_line(line: str | bytes, name: str, report: Report) -> dict[str, Any] | None:
    """The JSON object in a line: empty if it holds something else, None and listed in the report if it is not JSON.

    name: of the line.
    """
    try:
        content = strict_json.parsed(line)
    except ValueError:
        report.skip("a line that is not JSON", name)
        return None
    return content if isinstance(content, dict) else {}
