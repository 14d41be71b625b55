"""Retries after temporary failures: a busy server, a stale handle, a copy damaged in transfer."""

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
"""Seconds. What fails after so long was already retried below: by an object store's client or a network file system."""
_LASTING = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM}
"""Only from the operating system: fsspec's errors have no errno, and its FileNotFoundError over HTTP may mean a busy server."""


class Retries:
    """Calls actions on a set of files until they work."""

    def __init__(self) -> None:
        self._lost: set[str] = set()
        self._is_all_lost = False
        self._rest_until = 0.0
        self._reason = ""

    def __call__(self, name: str, action: Callable[[], T]) -> T:
        """`action()` on the file `name`, retried after an OSError that may be temporary.

        A file whose last call failed gets a single attempt until one succeeds; so does every file after any failure, until any
        call succeeds: if a shard or the whole server is gone, samples must not each wait. After an attempt that took long, such
        files fail at once for as long.

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
