"""The body of a command, from its call to its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from unimo_ds.utils.errors import EXIT_BAD_INPUT, EXIT_FAILED, ToldError, UserError, sentence_of, tell

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
"""In the messages of gloo and NCCL if another rank has gone."""
_statuses: list[int] = []


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command's body. Returns its exit status; an error with a `sentence_of` becomes one line on stderr and status 2."""
    _statuses.append(_status_of(command))
    return _statuses[-1]


def exit_status() -> int | None:
    """Of the last command that finished in this process; None: none has."""
    return _statuses[-1] if _statuses else None


def _status_of(command: Callable[[], int | None]) -> int:
    try:
        status = command() or 0
        print(end="", flush=True)
        return status
    except Exception as error:  # one without a sentence propagates
        if (sentence := sentence_of(error)) is not None:
            if not isinstance(error, ToldError):
                tell(sentence)
            return _ended_by(error, error.status if isinstance(error, UserError) else EXIT_BAD_INPUT)
        if not isinstance(error, RuntimeError | MemoryError):
            raise
        from unimo_ds.utils import out_of_memory  # which imports torch

        if out_of_memory.is_out_of_memory(error):
            tell(f"memory ran out ({out_of_memory.use_of()}); use a machine or a GPU that has more")
        elif any(sign in str(error) for sign in _LOST):
            tell("another rank has gone, and this one ends with it; the reason is what that one said")
        else:
            raise
        return _ended_by(error, EXIT_FAILED)


def _ended_by(error: Exception, status: int) -> int:
    sys.last_value = error  # as the interpreter does after a traceback; read by the code that ends this process
    drop_output()
    return status


def drop_output() -> None:
    """Discard output that stdout refuses (full disk, closed pipe), so that Python does not complain again when it exits."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
