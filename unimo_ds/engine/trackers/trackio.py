"""trackio: a database on this machine (`trackio show`), or a server given by its own variables, such as TRACKIO_SPACE_ID.

It cannot record how a run ended, nor remove numbers: a step that is repeated after a resume appears twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.engine.trackers.protocol import TrackedRun

REQUIREMENT = "trackio==0.43.0"


def open_run(run: TrackedRun) -> TrackioRun:
    """trackio identifies runs by name, so the name includes the id."""
    import trackio

    opened = trackio.init(
        project=run.project,
        name=f"{run.name}-{run.id}",
        group=run.group,
        config=dict(run.config),
        resume="allow",
        embed=False,
    )
    return TrackioRun(opened)


def abandon() -> None:
    """Nothing to do: trackio's threads end with the process."""


class TrackioRun:
    """A run of trackio, which writes or sends in its own thread."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def show(self, step: int, pictures: Sequence[NDArray[np.uint8]]) -> None:
        import trackio

        self._run.log({f"retrieved/{number}": trackio.Image(one) for number, one in enumerate(pictures)}, step=step)

    def finish(self, status: int) -> None:
        self._run.finish()
