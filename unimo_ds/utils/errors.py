"""The exception that reaches a user as one sentence, and exit statuses."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable

from unimo_ds.utils.printable import for_terminal, printable
from unimo_ds.utils.redact import redact

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_REQUEUE = 75
"""Stopped by SIGTERM, SIGUSR1 or the end of the launcher, with nothing lost: start the same command again (EX_TEMPFAIL of
sysexits.h)."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk."""
_NO_WAY = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO, errno.EBUSY, errno.ETXTBSY, errno.EXDEV),
)
"""Errors in what a user gave or can fix. For a failing disk (EIO, ESTALE) a traceback says more, and a Slurm job retries."""
_BY_RUST = re.compile(r"\(os error (\d+)\)")


class UserError(ValueError):
    """Bad input. The message names the culprit and the cure in one sentence; a command exits with `status`."""

    status = EXIT_BAD_INPUT


class MemoryRanOutError(UserError):
    """Not necessarily bad input: with all memory free again a new start may succeed, so a Slurm job retries."""

    status = EXIT_FAILED


class ToldError(UserError):
    """Bad input that one rank has reported for all: see `utils.agreement`."""


def tell(problem: str) -> None:
    """One line on stderr."""
    print(f"error: {for_terminal(redact(problem))}", file=sys.stderr, flush=True)


def sentence_of(error: Exception) -> str | None:
    """The sentence for bad input, and for a system error that no code closer to it has explained; None for all other errors."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        if error.encoding != "utf-8":
            return f"{error.encoding} lacks characters of what is to be written; set PYTHONUTF8=1"
        return f"{printable(error.object)[:200]!r} is no Unicode; give it a name in UTF-8"
    number = errno_of(error)
    filename = getattr(error, "filename", None)
    named = os.fsdecode(filename) if isinstance(filename, str | bytes) else ""
    if number in NO_ROOM:
        return (
            f"cannot write {named or 'what was made'}: {os.strerror(number)}; make room and give the same command again"
        )
    return f"cannot use {named}: {os.strerror(number)}" if named and number in _NO_WAY else None


def errno_of(error: Exception) -> int | None:
    """errno of an error, which libraries in Rust (safetensors, tokenizers) report in exceptions of their own; None: it is not a
    system error."""
    if isinstance(error, OSError):
        return error.errno
    found = _BY_RUST.search(str(error))
    return int(found[1]) if found else None


def nearest_name(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `choices`, or the list of them if none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
