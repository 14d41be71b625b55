"""Recovery from a spike that does not end: go back to an older checkpoint and skip the batches that led into it.

RUN/rollbacks.json records rollbacks. Later starts skip its batches too, so that a run stopped after a rollback and resumed
equals one that was not stopped. It is written before anything is undone, and a start completes an interrupted rollback.
Delete an entry to make the run read its batches again.
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
from unimo_ds.utils.whole_file import replace_file

FILE = "rollbacks.json"


@dataclass(frozen=True)
class Rollback:
    """One return to an older checkpoint. Steps are batch numbers, from 0."""

    first: int
    """The first step with a spike."""
    stop: int
    """The step after the last: steps `first` to `stop` - 1 are skipped."""
    reason: str
    samples: Sequence[Any] = ()
    """Number of each step with a spike and its sample keys by rank."""
    is_done: bool = False
    """Whether the checkpoints after `first` have been removed."""


def read(run_dir: Path) -> tuple[Rollback, ...]:
    """All rollbacks of a run, oldest first.

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
    """Record a rollback. May raise OSError."""
    _write(run_dir, [*read(run_dir), rollback])


def finish(run_dir: Path) -> tuple[Rollback, ...]:
    """Remove the checkpoints that the rollbacks undo; returns what `read` finds. May raise OSError."""
    rollbacks = read(run_dir)
    open_ones = [rollback for rollback in rollbacks if not rollback.is_done]
    if open_ones:
        checkpoint_folder.remove_after(run_dir / checkpoint_folder.FOLDER, min(item.first for item in open_ones))
        rollbacks = tuple(dataclasses.replace(rollback, is_done=True) for rollback in rollbacks)
        _write(run_dir, rollbacks)
    return rollbacks


def spans(start: int, stop: int, rollbacks: Sequence[Rollback]) -> list[range]:
    """The steps of start .. stop - 1 that are not skipped, as ranges."""
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
    replace_file(run_dir / FILE, content + "\n")
