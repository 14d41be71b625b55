"""Rows of text files, one per line, read again at each access: a rank stores where lines end, not their text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.finetune.files import decoded_line, numbered_lines
from unimo_ds.finetune.text_writing import TextRow
from unimo_ds.utils.errors import UserError


class LineRows:
    """`text_writing.Rows` of files whose lines correspond."""

    def __init__(self, paths: Sequence[Path], make: Callable[[list[str], list[str]], TextRow | None]) -> None:
        """Reads every line once, so that errors are reported now.

        make: the row of a line, from its `FILE:LINE` and its text in every file; None if there is no row in it.

        Raises:
            UserError: unreadable, not UTF-8, files of different numbers of lines, and what `make` raises.
        """
        self._paths, self._make = paths, make
        line_files = [numbered_lines(path) for path in paths]
        kept = []
        for lines in zip(*line_files, strict=False):
            number = lines[0][0]
            if make(self._names(number), [text for _, text in lines]) is not None:
                kept.append(number)
        self._numbers = np.array(kept, np.int64)
        self._ends = [_line_ends(path) for path in paths]
        counts = [len(ends) for ends in self._ends]
        if len(set(counts)) > 1:
            raise UserError(f"{paths[0]} has {counts[0]} lines and {paths[1]} {counts[1]}; they must belong together")
        self._files = [FileIO(path) for path in paths]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> TextRow:
        number = int(self._numbers[index])
        lines = [self._line(place, number) for place in range(len(self._paths))]
        row = self._make(self._names(number), lines)
        if row is None:
            raise UserError(f"{self._paths[0]} was changed while it was in use; start again")
        return row

    def _names(self, number: int) -> list[str]:
        return [f"{path}:{number}" for path in self._paths]

    def _line(self, place: int, number: int) -> str:
        ends = self._ends[place]
        start = int(ends[number - 2]) if number > 1 else 0
        line = os.pread(self._files[place].fileno(), int(ends[number - 1]) - start, start)
        return decoded_line(line, is_first=number == 1)


def _line_ends(path: Path) -> NDArray[np.int64]:
    with path.open("rb") as file:
        return np.cumsum(np.fromiter(map(len, file), np.int64))
