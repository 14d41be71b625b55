"""Writes files atomically, and makes a folder for them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

from unimo_ds.utils.errors import UserError


def make_folder(folder: Path) -> None:
    """With its parents, where it is not there yet.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write `content` beside `path`, onto the disk, and only then under its name.

    Raises:
        UserError: the disk is full or cannot be written; what was there before is still there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(aside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_made(path: Path, make: Callable[[io.BytesIO], object]) -> None:
    """`write_whole` of what `make` writes: libraries that write files themselves tell of a full disk in ways of their own, or not
    at all.

    Raises:
        UserError: as `write_whole`.
    """
    buffer = io.BytesIO()
    make(buffer)
    write_whole(path, buffer.getbuffer())
