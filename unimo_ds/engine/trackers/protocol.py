"""What a tracker is given, and what it must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrackedRun:
    """A run as its trackers know it."""

    id: str
    """The same in every start of the run."""
    name: str
    group: str
    """Its recipe: what seeds of a fine-tuning have in common."""
    project: str
    folder: Path
    config: Mapping[str, Any]
    """All settings, nested, without secrets."""
    say: Callable[[str], None]


class Tracker(Protocol):
    """A run that is open in a library. Everything is called from one thread, and may raise what it likes."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """values: may hold not-a-number. A step comes again, and smaller ones, after the run has gone back to a checkpoint."""

    def show(self, step: int, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """pictures: [height, width, 3] each."""

    def finish(self, status: int) -> None:
        """status: of the process."""


class TrackerModule(Protocol):
    """A file of this folder. It imports its library in `open_run` alone."""

    REQUIREMENT: str
    """The library as pip takes it, in the version that was run."""

    def open_run(self, run: TrackedRun) -> Tracker:
        """Begin the run, or go on with it where an earlier start began it."""

    def abandon(self) -> None:
        """From another thread, where any of the calls hangs: end what would keep this process from ending."""
