"""Files of a data folder that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from unimo_ds.utils.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
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
