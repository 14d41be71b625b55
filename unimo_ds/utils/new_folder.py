"""Folders that a command makes where the user says, complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from unimo_ds.utils.errors import UserError, errno_of


def refuse_occupied(folder: Path, *, option: str) -> None:
    """option: that named it.

    Raises:
        UserError: it holds something already.
    """
    if folder.exists() and (not folder.name or not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already holds something or is the current folder; give a new folder to {option}")


@contextlib.contextmanager
def new_folder(folder: Path, *, option: str) -> Iterator[Path]:
    """An empty folder beside `folder`; renamed to it at the end of the block, or removed if the block fails.

    Raises:
        UserError: `folder` holds something, or does by the end, perhaps from another command: it stays. Or the disk refuses
            anything inside.
    """
    refuse_occupied(folder, option=option)
    # In containers, the process number may be that of a killed one, or of another at work.
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    try:
        aside.mkdir(parents=True)
        yield aside
        refuse_occupied(folder, option=option)
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    except Exception as error:  # libraries report disk errors by exceptions of their own
        number = errno_of(error)
        if number is None:
            raise
        raise UserError(f"cannot write {folder}: {os.strerror(number)}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
