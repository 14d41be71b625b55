"""Writes files atomically, and makes a folder for them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

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


def opened_anew(path: Path) -> io.FileIO:
    """A new file, open for writing. What is there is removed, not followed: in a folder of many users it may be another's link to
    one's own file. May raise OSError."""
    path.unlink(missing_ok=True)
    return io.FileIO(path, "x")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file beside `path`, open for writing; at the end it is synced to the disk and renamed. Processes that
    write the same file do not disturb each other.

    Raises:
        UserError: the disk is full or cannot be written; an existing file is unchanged.
    """
    try:
        with _renamed(path.with_name(f".{path.name}.{os.getpid()}.partial"), path) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """`whole_file` with this content."""
    with whole_file(path) as stream:
        stream.write(content)


def write_made(path: Path, make: Callable[[io.BytesIO], object]) -> None:
    """`write_whole` of what `make` writes, by way of memory: libraries that write files themselves report a full disk each in
    their own way, or not at all."""
    buffer = io.BytesIO()
    make(buffer)
    write_whole(path, buffer.getbuffer())


def replace_file(path: Path, content: str) -> None:
    """Write a small file of one process alone: after a crash it holds either the old content or the new. May raise OSError."""
    with _renamed(path.with_name(f".{path.name}"), path) as stream:
        stream.write(content.encode())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash. May raise OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _renamed(aside: Path, path: Path) -> Iterator[BinaryIO]:
    """`aside`, open for writing; at the end synced to the disk and renamed. May raise OSError."""
    try:
        with io.BufferedWriter(opened_anew(aside)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
