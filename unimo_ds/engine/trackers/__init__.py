"""Experiment trackers beside TensorBoard: `--set logging.trackers=wandb,trackio`. Each is a file here, named in `config.py`.

A tracker gets the numbers of metrics.jsonl under the same names, with our step as their axis, the pictures of evaluations, the
configuration without secrets, and how the run ended. Only rank 0 has trackers. Keys and servers are set in the libraries, not
in recipes. Errors of a library become warnings (`patient.py`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.engine.trackers.patient import PatientTracker
from unimo_ds.engine.trackers.protocol import TrackedRun, TrackerModule
from unimo_ds.utils.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError
from unimo_ds.utils.redact import redacted
from unimo_ds.utils.whole_file import replace_file

ID_FILE = "tracker_id"
"""Holds the id by which trackers recognise a continued run."""
_SECONDS = 60.0
"""Time to send pending data when a run ends."""
_SECONDS_OF_FAILURE = 10.0
"""The same if it fails: launchers kill the ranks half a minute after the first one exits."""


Trackers: TypeAlias = tuple[PatientTracker, ...]


def check_installed(names: Sequence[str]) -> None:
    """
    Raises:
        UserError: a library is missing; the message says how to install it.
    """
    for name in names:
        requirement = _module(name).REQUIREMENT
        try:
            importlib.metadata.version(requirement.partition("==")[0])
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"logging.trackers={','.join(names)} needs {name}, which is not installed; `pip install {requirement}`, or "
                "leave it out"
            ) from None


def make_trackers(config: RunConfig, say: Callable[[str], None]) -> Trackers:
    """The trackers in the configuration. May raise OSError: the run directory is not writable."""
    names = tuple(dict.fromkeys(config.logging.trackers))
    if not names:
        return ()
    folder = Path(config.run_dir)
    run = TrackedRun(
        id=_id_of(folder),
        name=folder.resolve().name,
        group=config.recipe,
        project=config.logging.project,
        folder=folder,
        config=redacted(to_dict(config)),
        say=say,
    )
    return tuple(PatientTracker(name, _module(name), run) for name in names)


def finish(trackers: Trackers, status: int | None) -> None:
    """Report how the run ends, and wait, within limits, until pending data is sent.

    status: exit status of the process; None: an exception is propagating.
    """
    patience = _SECONDS if status is not None else _SECONDS_OF_FAILURE
    for tracker in trackers:
        tracker.finish(_status_of(sys.exception()) if status is None else status)
    end = time.monotonic() + patience
    for tracker in trackers:
        tracker.leave(end)


def _status_of(error: BaseException | None) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_BAD_INPUT if isinstance(error, UserError) else 1


def _id_of(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.is_file():
        replace_file(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def _module(name: str) -> TrackerModule:
    return cast(TrackerModule, importlib.import_module(f"{__name__}.{name}"))
