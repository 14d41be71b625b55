"""metrics.jsonl read back: a record a line, of the numbers that were logged after a step, or of an event.

A last line without an end is left out: it is being written, or was when the run was killed. Any other line that is no record was
spoilt by a crash of the machine; it is read as an event DAMAGED of the step before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unimo_ds.utils import strict_json

METRICS_FILE = "metrics.jsonl"
DAMAGED = "damaged"


class Record(NamedTuple):
    """One line."""

    line: str
    """As it stands in the file, with its end."""
    step: int
    event: str
    """What happened; empty: numbers were logged."""
    values: Mapping[str, Any]
    """All that the line says. Of numbers: `time`, seconds since the epoch, and None for what was not finite."""


def read(path: Path) -> Iterator[Record]:
    """In the file's order; none where there is no file. May raise OSError."""
    if path.is_file():
        step = 0
        with path.open(errors="replace") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield (record := _record(line, step))
                    step = record.step


def _record(line: str, step_before: int) -> Record:
    try:
        values = strict_json.parsed(line)
        step = strict_json.typed(int, values["step"], where="step")
        event = strict_json.typed(str, values.get("event", ""), where="event")
        if not event:
            strict_json.typed(float, values["time"], where="time")
    except (ValueError, KeyError, TypeError):
        step, event = step_before, DAMAGED
        values = {"step": step, "event": event, "text": f"a line of {METRICS_FILE} that cannot be read"}
    return Record(line, step, event, values)
