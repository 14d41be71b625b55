"""The one exception that reaches a user as a sentence."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

from unimo_ds.utils.redact import redact

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_REQUEUE = 75
"""Stopped by SIGTERM, SIGUSR1 or the end of the launcher, with nothing lost: start the same command again (EX_TEMPFAIL of
sysexits.h)."""


class UserError(ValueError):
    """Bad input. The message names the culprit and the cure in one sentence; a command exits with `status`."""

    status = EXIT_BAD_INPUT


class MemoryRanOutError(UserError):
    """Not surely bad input: memory that a new start finds whole may be enough, so that a Slurm job tries again."""

    status = EXIT_FAILED


class ToldError(UserError):
    """Bad input that one rank has told on behalf of all: see `utils.agreement`."""


def tell(problem: str) -> None:
    """One line on stderr."""
    print(f"error: {redact(problem)}", file=sys.stderr, flush=True)


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `choices`, or the list of them where none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command line's body. Returns its exit status; a `UserError` becomes one line on stderr and status 2."""
    _statuses.append(_status_of(command))
    return _statuses[-1]


def exit_status() -> int | None:
    """Of the last command that came to its end in this process; None: there was none."""
    return _statuses[-1] if _statuses else None


_statuses: list[int] = []


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
"""In what gloo and NCCL say where another rank has gone."""


def _status_of(command: Callable[[], int | None]) -> int:
    try:
        return command() or 0
    except UserError as error:
        if not isinstance(error, ToldError):
            tell(str(error))
        return _ended_by(error, error.status)
    except (RuntimeError, MemoryError) as error:
        from unimo_ds.utils import out_of_memory  # which imports torch

        if out_of_memory.is_out_of_memory(error):
            tell(f"memory ran out ({out_of_memory.use_of()}); use a machine or a GPU that has more")
        elif any(sign in str(error) for sign in _LOST):
            tell("another rank has gone, and this one ends with it; the reason is what that one said")
        else:
            raise
        return _ended_by(error, EXIT_FAILED)


def _ended_by(error: Exception, status: int) -> int:
    sys.last_value = error  # as the interpreter has it after a traceback, for those who end this process
    return status
