"""Reading the official files of tasks: what is wrong is said with file and line, and nothing is guessed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError, nearest_name
from unimo_ds.utils.json_entries import objects_under
from unimo_ds.utils.printable import is_unicode


def first_file(data: Path, names: Sequence[str]) -> Path:
    """The first of `names` that lies in the folder `data`.

    Raises:
        UserError: none does; lists them.
    """
    for name in names:
        if (data / name).is_file():
            return data / name
    raise none_of(data, ", ".join(names))


def none_of(data: Path, names: str) -> UserError:
    """What to raise where the folder `data` has no file of `names`."""
    problem = f"{data} has none of {names}" if data.is_dir() else f"there is no folder {data}"
    return UserError(f"{problem}; give the folder of the task's official files")


def read_tsv(path: Path, *, header: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every line. Tabs separate, quotes are ordinary characters (GLUE's form).

    header: the columns' names, where the file does not begin with them.

    Raises:
        UserError: unreadable, not UTF-8, a line with too few columns, or no line at all.
    """
    names, is_empty = list(header) if header is not None else None, True
    for number, line in numbered_lines(path):
        parts = line.split("\t")
        if names is None:
            names = parts
            continue
        if not line:
            continue
        # Files of the field end some lines early only by mistake; more columns than names are ignored.
        if len(parts) < len(names):
            raise UserError(
                f"{path}:{number} has {len(parts)} columns where {len(names)} are named ({', '.join(names)})"
            )
        is_empty = False
        yield number, dict(zip(names, parts, strict=False))
    if is_empty:  # of the files of a split, each is measured: none may be without a word
        raise UserError(f"{path} holds no example")


def column(row: dict[str, str], name: str, path: Path) -> str:
    """
    Raises:
        UserError: the file has no such column.
    """
    if name not in row:
        raise UserError(f"{path} has no column {name!r}{nearest_name(name, row)}")
    return row[name]


def plain_text(text: Any, where: str) -> str:
    """The text as it is.

    Raises:
        UserError: it is none (null, a number, a list of JSON), or no Unicode (half of an escaped pair).
    """
    if not isinstance(text, str):
        raise UserError(f"{where} has {json.dumps(text)[:40]} where a text belongs")
    if not is_unicode(text):
        raise UserError(f"{where} has a text that is no Unicode: {json.dumps(text)[:40]}; give it another")
    return text


def text_of(text: Any, where: str) -> str:
    """The text without white space around it.

    Raises:
        UserError: nothing is left, or it is no text.
    """
    stripped = plain_text(text, where).strip()
    if not stripped:
        raise UserError(f"{where} has an empty text; give every example one, or take its line out")
    return stripped


def label_of(label: str, labels: Sequence[str], where: str) -> float:
    """The number of a label.

    Raises:
        UserError: not one of them.
    """
    if label not in labels:
        raise UserError(f"{where} has the unknown label {label!r}; this task knows {', '.join(labels)}")
    return float(labels.index(label))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end).

    Raises:
        UserError: unreadable or not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # a text file decodes far ahead of its lines
                yield number, decoded_line(line, is_first=number == 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number} is not UTF-8 ({error.reason}); save the file as UTF-8") from None


def decoded_line(line: bytes, *, is_first: bool) -> str:
    """Without its end and, at the beginning of a file, the mark that some programs write there. May raise UnicodeDecodeError."""
    return line.decode("utf-8-sig" if is_first else "utf-8").rstrip("\r\n")


def read_json_items(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects in the list `name` of a JSON document, one after the other: the document is never held.

    Raises:
        UserError: unreadable, not JSON, or no such list of objects, or nothing in it.
    """
    items = objects_under(path, name, what="a file of this task", finite=True)
    first = next(items, None)
    if first is None:
        raise UserError(f"{path} has no entries in a list {name!r}")
    yield first
    yield from items


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not empty.

    Raises:
        UserError: unreadable, or a line that is not a JSON object.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        yield number, parse_object(line, f"{path}:{number}")


def parse_object(line: str, where: str) -> dict[str, Any]:
    """
    Raises:
        UserError: not a JSON object.
    """
    try:
        value = strict_json.parsed(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object")
    return value


def fingerprint_of(paths: Sequence[Path]) -> str:
    """16 hexadecimal digits over the content of files.

    Raises:
        UserError: unreadable.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()[:16]
