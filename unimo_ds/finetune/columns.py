"""Examples as columns: half a million become a few arrays of ragged rows end to end, and numbered file names."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"i": np.int32, "q": np.int64, "f": np.float32, "d": np.float64}
_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]{0,17})", re.DOTALL)


class Ragged:
    """Rows of numbers, of any lengths. Nothing may be appended after the first row has been read."""

    def __init__(self, kind: Literal["i", "q", "f", "d"], rows: Iterable[Sequence[Any] | NDArray[Any]] = ()) -> None:
        """kind: int32, int64, float32 or float64."""
        self._kind = kind
        self._values, self._ends = array(kind), array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[Any] | NDArray[Any]) -> None:
        self._values.frombytes(np.asarray(row, _DTYPES[self._kind]).tobytes())
        self._ends.append(len(self._values))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        """A read-only view."""
        found: NDArray[Any] = self.flat[self._ends[index] : self._ends[index + 1]]
        return found

    @property
    def flat(self) -> NDArray[Any]:
        """All rows, end to end."""
        flat: NDArray[Any] = np.frombuffer(self._values, _DTYPES[self._kind])
        flat.flags.writeable = False
        return flat

    def length(self, index: int) -> int:
        return self._ends[index + 1] - self._ends[index]

    def select(self, indices: Iterable[int]) -> Ragged:
        return Ragged(self._kind, (self[index] for index in indices))


class Names:
    """Texts that end in a number, such as `FILE:LINE`; each prefix is stored once."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._place_of: dict[str, int] = {}
        self._beginnings: list[str] = []
        self._places, self._numbers = array("i"), array("q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        found = _NUMBERED.fullmatch(name)
        beginning, number = (found[1], int(found[2])) if found else (name, -1)
        place = self._place_of.setdefault(beginning, len(self._beginnings))
        if place == len(self._beginnings):
            self._beginnings.append(beginning)
        self._places.append(place)
        self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> str:
        beginning, number = self._beginnings[self._places[index]], self._numbers[index]
        return beginning if number < 0 else f"{beginning}{number}"

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Iterable[int]) -> Names:
        return Names(self[index] for index in indices)
