"""The one exception that reaches a user as a sentence."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable

from unimo_ds.utils.printable import printable
from unimo_ds.utils.redact import redact

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_REQUEUE = 75
"""Stopped by SIGTERM, SIGUSR1 or the end of the launcher, with nothing lost: start the same command again (EX_TEMPFAIL of
sysexits.h)."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_WAY = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO, errno.EBUSY, errno.ETXTBSY, errno.EXDEV),
)
"""What a user gave or may mend. Of a disk that fails (EIO, ESTALE) a traceback tells more, and a Slurm job tries again."""
_BY_RUST = re.compile(r"\(os error (\d+)\)")
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
"""In what gloo and NCCL say where another rank has gone."""


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


def sentence_of(error: Exception) -> str | None:
    """What is told of bad input, and of what the system refuses where nobody nearer to it has said more; None: of all else."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        if error.encoding != "utf-8":
            return f"{error.encoding} lacks characters of what is to be written; set PYTHONUTF8=1"
        return f"{printable(error.object)[:200]!r} is no Unicode; give it a name in UTF-8"
    number = errno_of(error)
    filename = getattr(error, "filename", None)
    named = os.fsdecode(filename) if isinstance(filename, str | bytes) else ""
    if number in _NO_ROOM:
        return (
            f"cannot write {named or 'what was made'}: {os.strerror(number)}; make room and give the same command again"
        )
    return f"cannot use {named}: {os.strerror(number)}" if named and number in _NO_WAY else None


def errno_of(error: Exception) -> int | None:
    """The system's number of an error, which libraries in Rust (safetensors, tokenizers) tell by exceptions of their own; None:
    it is not the system's."""
    if isinstance(error, OSError):
        return error.errno
    found = _BY_RUST.search(str(error))
    return int(found[1]) if found else None


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `choices`, or the list of them where none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command line's body. Returns its exit status; what has a `sentence_of` becomes one line on stderr and status 2."""
    _statuses.append(_status_of(command))
    return _statuses[-1]


def exit_status() -> int | None:
    """Of the last command that came to its end in this process; None: there was none."""
    return _statuses[-1] if _statuses else None


_statuses: list[int] = []


def _status_of(command: Callable[[], int | None]) -> int:
    try:
        status = command() or 0
        print(end="", flush=True)
        return status
    except Exception as error:  # what has no sentence goes on as it is
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
    sys.last_value = error  # as the interpreter has it after a traceback, for those who end this process
    drop_output()
    return status


def drop_output() -> None:
    """What stdout does not take (a full disk, a reader that has gone) is lost: Python must not complain again when it ends."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
