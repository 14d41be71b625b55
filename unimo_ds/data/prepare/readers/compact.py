"""Lists of millions of small values, which as Python objects would take ten times the memory of their text."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from typing import Any


class CompactList:
    """JSON values, stored as text in one piece of memory and parsed at each access (tuples become lists)."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._text, self._ends = bytearray(), array("q", [0])
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        # File names need not be Unicode.
        self._text += json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        text = self._text[self._ends[index] : self._ends[index + 1]]
        return json.loads(text.decode("utf-8", "surrogatepass"))
