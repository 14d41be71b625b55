"""The interface of trackers: what they get and must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrackedRun:
    """Description of a run for its trackers."""

    id: str
    """The same in every start of the run."""
    name: str
    group: str
    """Its recipe, which the seeds of a fine-tuning share."""
    project: str
    folder: Path
    config: Mapping[str, Any]
    """All settings, nested, without secrets."""
    say: Callable[[str], None]


class Tracker(Protocol):
    """A run opened in a library. All methods are called from one thread and may raise any exception."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """values: may include nan. After the run has gone back to a checkpoint, steps decrease and repeat."""

    def show(self, step: int, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """pictures: [height, width, 3] each."""

    def finish(self, status: int) -> None:
        """status: exit status of the process."""


class TrackerModule(Protocol):
    """A file of this folder. It imports its library only when a run is opened."""

    REQUIREMENT: str
    """The library's pip requirement, in the tested version."""

    def open_run(self, run: TrackedRun) -> Tracker:
        """Create the run, or continue it if an earlier start created it."""

    def abandon(self) -> None:
        """Called from another thread if a call hangs: end what would keep this process from exiting."""
