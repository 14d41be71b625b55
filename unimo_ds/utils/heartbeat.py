"""Signs of life of long work, such as a measurement of half a million texts, for whoever watches over it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_listeners: list[Callable[[], None]] = []


def beat() -> None:
    """Call it after each piece of long work."""
    for listener in _listeners:
        listener()


@contextlib.contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` at every `beat` inside."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
