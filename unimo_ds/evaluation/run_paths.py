"""Paths in a run's configuration, used from elsewhere: a relative one starts from the folder where the run was started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unimo_ds.engine.run_directory import ENVIRONMENT_FILE
from unimo_ds.utils import locations, strict_json

_STARTED_IN = "directory"


def from_here(location: str, config_file: Path) -> str:
    """`location`, one or several (`A::B`) paths or URLs from the configuration in `config_file`: each resolved where the run
    was started, if it exists there, else unchanged (the run and its data were moved together, or it is an older run).

    Raises:
        UserError: the run's record of its start is damaged.
    """
    note = config_file.parent / ENVIRONMENT_FILE
    started = strict_json.read(note, dict[str, Any]).get(_STARTED_IN) if note.is_file() else None
    if not location or not isinstance(started, str):
        return location
    return locations.join([_one(place, started) for place in locations.split(location)])


def _one(place: str, started: str) -> str:
    there = os.path.join(started, place)
    return there if "://" not in place and os.path.exists(there) else place
