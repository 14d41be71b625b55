"""Trying again after failures that pass: a busy server, a stale handle, a copy that was damaged on its way."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_ATTEMPTS = 4
_FIRST_PAUSE = 0.25
"""Seconds; each pause is four times the one before."""
_LASTING = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM}
"""Of the operating system. What fsspec raises has no number: its FileNotFoundError over HTTP may mean that a server is busy."""


class Retries:
    """Calls an action until it works, for one place that it reads from."""

    def __init__(self) -> None:
        self._has_given_up = False

    def __call__(self, action: Callable[[], T]) -> T:
        """`action()`, tried again after an OSError that may pass.

        After a failure of all attempts one has to do, until one works: where everything is gone, not every sample shall wait.

        Raises:
            OSError: of the last attempt.
        """
        attempts = 1 if self._has_given_up else _ATTEMPTS
        for attempt in range(attempts):
            if attempt:
                time.sleep(_FIRST_PAUSE * 4 ** (attempt - 1))
            try:
                result = action()
            except OSError as error:
                if error.errno in _LASTING:
                    raise
                last = error
            else:
                self._has_given_up = False
                return result
        self._has_given_up = True
        raise last
