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
_LONG = 30.0
"""Seconds. What fails after so long was tried again by others: a client of an object store, a network file system."""
_LASTING = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM}
"""Of the operating system. What fsspec raises has no number: its FileNotFoundError over HTTP may mean that a server is busy."""


class Retries:
    """Calls actions on some files until they work."""

    def __init__(self) -> None:
        self._lost: set[str] = set()
        self._is_all_lost = False
        self._rest_until = 0.0
        self._reason = ""

    def __call__(self, name: str, action: Callable[[], T]) -> T:
        """`action()` on the file `name`, tried again after an OSError that may pass.

        One attempt has to do for a file that was lost, until it is found again, and for any while none is found: where a shard or
        the whole server is gone, not every sample shall wait. After an attempt that took long, such files are lost without one
        for as long.

        Raises:
            OSError: of the last attempt.
        """
        is_lost = self._is_all_lost or name in self._lost
        began = time.monotonic()
        if is_lost and began < self._rest_until:
            raise OSError(f"{name} is not tried again yet, after {self._reason}")
        for attempt in range(1 if is_lost else _ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_PAUSE * 4 ** (attempt - 1))
            try:
                result = action()
            except OSError as error:
                if error.errno in _LASTING:
                    raise
                last = error
                took = time.monotonic() - began
                if took > _LONG:
                    self._rest_until, self._reason = began + 2 * took, str(error)
                    break
            else:
                self._is_all_lost = False
                self._lost.discard(name)
                return result
        self._is_all_lost = True
        self._lost.add(name)
        raise last
