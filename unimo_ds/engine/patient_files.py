"""Log files that do not end a run when the disk is full: writes are delayed or dropped, and training continues."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

from unimo_ds.utils.printable import for_terminal
from unimo_ds.utils.redact import redact

_MOST_WAITING = 4 * 2**20
"""Bytes of lines to buffer while the disk is full; about ten thousand steps."""
_REOPEN_SECONDS = 30.0
_BOARD_FILE = re.compile(r"events\.out\.tfevents\.([0-9]{10})\.")


def say(text: str) -> None:
    """Print a line, without secrets or controls of a terminal. It is lost if stdout is a file on a full disk."""
    with contextlib.suppress(OSError):
        print(for_terminal(redact(text)), flush=True)


class PatientLines:
    """Appends lines to a file; if the disk is full, they are written later, complete and in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting = b""
        self._is_full = False

    def write(self, line: str) -> None:
        """Append a line (given without newline)."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting += line.encode() + b"\n"
        self._try()

    def _try(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
            self._is_full = False
        except OSError as error:
            if not self._is_full:
                say(f"warning: cannot write {self._path}: {error.strerror}; its lines wait, training goes on")
            self._is_full = True

    def close(self) -> None:
        if self._descriptor >= 0:
            self._try()
            os.close(self._descriptor)
            self._descriptor = -1


class PatientBoard:
    """TensorBoard's writer; drops data while the disk is full, and later tries to start a new file."""

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        self._folder = folder
        self._closed_at = 0.0
        self._board: Any = None
        self._open(purge_step)

    def add(self, kind: str, *arguments: Any, **options: Any) -> None:
        """Call `SummaryWriter.add_<kind>`."""
        if self._board is None and time.monotonic() - self._closed_at > _REOPEN_SECONDS:
            self._open(None)
        self._try(f"add_{kind}", *arguments, **options)

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        self._try("close")

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            _put_in_the_past(self._folder)
            self._board = SummaryWriter(str(self._folder), purge_step=purge_step)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._give_up(error)

    def _try(self, name: str, *arguments: Any, **options: Any) -> None:
        if self._board is None:
            return
        try:
            getattr(self._board, name)(*arguments, **options)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not self._closed_at:
            say(
                f"warning: cannot write {self._folder}: {error.strerror}; TensorBoard misses these steps, training goes on"
            )
        self._closed_at = time.monotonic()
        board, self._board = self._board, None
        if board is not None:
            with contextlib.suppress(OSError):
                board.close()


def _put_in_the_past(folder: Path) -> None:
    """Rename the files of earlier starts so that all come before one made now. May raise OSError.

    TensorBoard reads files in the order of their names, which hold the second of their start and then the process's number. If an
    earlier start is of the same second, or of a later one because the clock was set back, it would drop this one's steps.
    """
    folder.mkdir(exist_ok=True)
    second_of = {file: int(found[1]) for file in folder.iterdir() if (found := _BOARD_FILE.match(file.name))}
    ahead = max(second_of.values(), default=0) - int(time.time()) + 1
    if ahead > 0:
        for file in sorted(second_of):
            moved = _BOARD_FILE.sub(f"events.out.tfevents.{second_of[file] - ahead}.", file.name)
            file.rename(file.with_name(moved))
