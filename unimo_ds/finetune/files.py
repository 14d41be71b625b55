"""Reading the official files of tasks: errors name file and line, and nothing is guessed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError, nearest_name
from unimo_ds.utils.json_entries import objects_under
from unimo_ds.utils.printable import is_unicode


def first_file(data: Path, names: Sequence[str]) -> Path:
    """The first of `names` that exists in the folder `data`.

    Raises:
        UserError: none exists; lists them.
    """
    return first_files(data, [(name,) for name in names])[0]


def first_files(data: Path, choices: Iterable[tuple[str, ...]]) -> tuple[Path, ...]:
    """The first of `choices` whose files all exist in the folder `data`.

    Raises:
        UserError: none does; lists them.
    """
    choices = list(choices)
    for names in choices:
        if all((data / name).is_file() for name in names):
            return tuple(data / name for name in names)
    raise none_of(data, ", ".join(map(" with ".join, choices)))


def none_of(data: Path, names: str) -> UserError:
    """The error to raise if the folder `data` has no file of `names`."""
    problem = f"{data} has none of {names}" if data.is_dir() else f"there is no folder {data}"
    return UserError(f"{problem}; give the folder of the task's official files")


def read_tsv(path: Path, *, header: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every line. Separated by tabs; quotes are ordinary characters (GLUE's form).

    header: the columns' names, if the file does not start with them.

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
        # In published files a line is too short only by mistake; columns beyond the names are ignored.
        if len(parts) < len(names):
            raise UserError(
                f"{path}:{number} has {len(parts)} columns where {len(names)} are named ({', '.join(names)})"
            )
        is_empty = False
        yield number, dict(zip(names, parts, strict=False))
    if is_empty:  # each file of a split is measured separately, so none may be empty
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
    """The text, unchanged.

    Raises:
        UserError: not a text (null, a number, a list in JSON), or not Unicode (half of an escaped pair).
    """
    if not isinstance(text, str):
        raise UserError(f"{where} has {json.dumps(text)[:40]} where a text belongs")
    if not is_unicode(text):
        raise UserError(f"{where} has a text that is no Unicode: {json.dumps(text)[:40]}; give it another")
    return text


def text_of(text: Any, where: str) -> str:
    """The text without surrounding white space.

    Raises:
        UserError: nothing is left, or it is not a text.
    """
    stripped = plain_text(text, where).strip()
    if not stripped:
        raise UserError(f"{where} has an empty text; give every example one, or take its line out")
    return stripped


def label_of(label: str, labels: Sequence[str], where: str) -> float:
    """Index of `label` in `labels`.

    Raises:
        UserError: not one of them.
    """
    if label not in labels:
        raise UserError(f"{where} has the unknown label {label!r}; this task knows {', '.join(labels)}")
    return float(labels.index(label))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its line break).

    Raises:
        UserError: unreadable or not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # bytes: a text file decodes far ahead of the current line
                yield number, decoded_line(line, is_first=number == 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number} is not UTF-8 ({error.reason}); save the file as UTF-8") from None


def decoded_line(line: bytes, *, is_first: bool) -> str:
    """Without its line break and, on the first line, a byte order mark. May raise UnicodeDecodeError."""
    return line.decode("utf-8-sig" if is_first else "utf-8").rstrip("\r\n")


def read_json_items(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects in the list `name` of a JSON document, one by one; the whole document is never held in memory.

    Raises:
        UserError: unreadable, not JSON, or no such list of objects, or nothing in it.
    """
    items = objects_under(path, name, what="a file of this task", finite=True)
    first = next(items, None)
    if first is None:
        raise UserError(f"{path} has no entries in a list {name!r}")
    yield first
    yield from items


@contextlib.contextmanager
def in_form_of(name: str, path: Path) -> Iterator[None]:
    """Around code that takes apart what was read from the file `path`.

    Raises:
        UserError: a part is missing, or is another kind of thing than in the files of `name`.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not in {name}'s form ({type(error).__name__}: {error})") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every non-empty line.

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
    """16 hexadecimal digits, a hash of the files' contents.

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
