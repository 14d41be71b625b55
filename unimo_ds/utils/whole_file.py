"""Writes files atomically, and makes a folder for them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

from unimo_ds.utils.errors import UserError


def make_folder(folder: Path) -> None:
    """With its parents, if it does not exist yet.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to a file beside `path`, sync it to the disk, then rename it.

    Raises:
        UserError: the disk is full or cannot be written; an existing file is unchanged.
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
    """`write_whole` of what `make` writes: libraries that write files themselves report a full disk each in their own way, or
    not at all.

    Raises:
        UserError: as `write_whole`.
    """
    buffer = io.BytesIO()
    make(buffer)
    write_whole(path, buffer.getbuffer())
