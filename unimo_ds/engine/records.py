"""metrics.jsonl read back: a record a line, of the numbers that were logged after a step, or of an event.

A last line without an end is left out: it is being written, or was when the run was killed. Any other line that is no record was
spoilt by a crash of the machine; it is read as an event DAMAGED of the step before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.engine.checkpoint_folder import replace_file
from unimo_ds.utils import strict_json

METRICS_FILE = "metrics.jsonl"
DAMAGED = "damaged"


@dataclass(frozen=True)
class Record:
    """One line."""

    line: str
    """As it stands in the file, with its end."""
    step: int
    event: str
    """What happened; empty: numbers were logged."""
    values: Mapping[str, Any]
    """All that the line says. Of numbers: `time`, seconds since the epoch, and None for what was not finite."""

    @property
    def is_evaluation(self) -> bool:
        return not self.event and "loss/total" not in self.values


def read(path: Path) -> Iterator[Record]:
    """In the file's order; none where there is no file. May raise OSError."""
    step = 0
    for line in _whole_lines(path):
        try:
            record = _record(line)
        except ValueError:
            values = {"step": step, "event": DAMAGED, "text": f"a line of {path.name} that cannot be read"}
            record = Record(line, step, DAMAGED, values)
        step = record.step
        yield record


def cut_after(path: Path, step: int, *, last_measured: int) -> None:
    """Drop the lines of steps after `step`, of evaluations after `last_measured`, and all that are no records. Atomic."""
    kept = "".join(
        record.line
        for record in read(path)
        if record.event != DAMAGED and record.step <= (last_measured if record.is_evaluation else step)
    )
    if path.is_file() and kept != path.read_text(errors="replace"):
        replace_file(path, kept)


def _whole_lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(errors="replace") as lines:
            yield from (line for line in lines if line.endswith("\n"))


def _record(line: str) -> Record:
    """
    Raises:
        ValueError: it is none.
    """
    values = strict_json.parsed(line)
    if not isinstance(values, dict):
        raise ValueError("no object")
    if "event" not in values:
        strict_json.typed(float, values.get("time"), where="time")
    step = strict_json.typed(int, values.get("step"), where="step")
    return Record(line, step, strict_json.typed(str, values.get("event", ""), where="event"), values)
