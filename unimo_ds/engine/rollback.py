"""Going back over a spike that does not end: to an older checkpoint, and past the batches that led into it.

RUN/rollbacks.json is the run's memory of it. What it lists is not read by any later start either, so that a run which is stopped
after a rollback and resumed equals one that was not; it is written before anything is undone, and a start finishes what an
interrupted one has begun. Delete an entry to let a run read these batches after all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.engine import checkpoint_folder
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

FILE = "rollbacks.json"


@dataclass(frozen=True)
class Rollback:
    """One return to an older checkpoint. Steps are numbers of batches, from 0."""

    first: int
    """The first step with a spike."""
    stop: int
    """The step after the last: `first` up to here are passed over."""
    reason: str
    samples: Sequence[Any] = ()
    """Of each of these steps: its number and the keys of its samples by rank."""
    is_done: bool = False
    """Whether the checkpoints from after `first` are gone."""


def read(run_dir: Path) -> tuple[Rollback, ...]:
    """All of a run's, oldest first.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return ()
    cure = "restore it, or delete it to read all batches again"
    found: tuple[Rollback, ...] = strict_json.read(path, tuple[Rollback, ...], cure=cure)
    for number, rollback in enumerate(found):
        if not 0 <= rollback.first <= rollback.stop:
            raise UserError(f"{path}[{number}] passes over steps {rollback.first} to {rollback.stop}; {cure}")
    return found


def begin(run_dir: Path, rollback: Rollback) -> None:
    """Put a rollback on record. May raise OSError."""
    _write(run_dir, [*read(run_dir), rollback])


def finish(run_dir: Path) -> tuple[Rollback, ...]:
    """What `read` finds, after the checkpoints that these have undone are removed. May raise OSError."""
    rollbacks = read(run_dir)
    open_ones = [rollback for rollback in rollbacks if not rollback.is_done]
    if open_ones:
        checkpoint_folder.remove_after(run_dir / checkpoint_folder.FOLDER, min(item.first for item in open_ones))
        rollbacks = tuple(dataclasses.replace(rollback, is_done=True) for rollback in rollbacks)
        _write(run_dir, rollbacks)
    return rollbacks


def spans(start: int, stop: int, rollbacks: Sequence[Rollback]) -> list[range]:
    """The steps of start .. stop - 1 that are to be taken, in runs of consecutive ones."""
    found = [range(start, stop)] if start < stop else []
    for rollback in rollbacks:
        cut = []
        for span in found:
            cut.append(range(span.start, max(span.start, min(span.stop, rollback.first))))
            cut.append(range(min(span.stop, max(span.start, rollback.stop)), span.stop))
        found = [span for span in cut if len(span)]
    return found


def _write(run_dir: Path, rollbacks: Sequence[Rollback]) -> None:
    content = json.dumps([dataclasses.asdict(rollback) for rollback in rollbacks], indent=2)
    checkpoint_folder.replace_file(run_dir / FILE, content + "\n")
