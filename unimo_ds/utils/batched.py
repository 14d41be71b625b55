"""Items in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """`itertools.batched` of Python 3.12, yielding lists."""
    left = iter(items)
    while some := list(itertools.islice(left, size)):
        yield some
