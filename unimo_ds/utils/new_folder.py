"""Folders that a command makes whole under a name that the user gives."""

from __future__ import annotations

import os
from pathlib import Path

from unimo_ds.utils.errors import UserError


def refuse_occupied(folder: Path, *, option: str) -> None:
    """option: that named it.

    Raises:
        UserError: something is there.
    """
    if folder.exists() and (not folder.name or not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already holds something or is the current folder; give a new folder to {option}")


def put_in_place(made: Path, folder: Path, *, option: str) -> None:
    """Give a whole folder, made beside it, its name.

    Raises:
        UserError: something has come there meanwhile, from another command perhaps; it stays.
        OSError: the disk refuses.
    """
    refuse_occupied(folder, option=option)
    if folder.exists():
        folder.rmdir()
    os.replace(made, folder)
