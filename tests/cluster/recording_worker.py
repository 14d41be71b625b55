"""The trainer, which also notes what it reads: `recording_worker.py NOTES START ARGUMENTS...` adds a line for each.

A line is `[start, step, [key, ...]]` with the samples of this rank. It is in the file before the step is taken, whatever becomes
of the process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from unimo_ds import train
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.schema import StepBatch
from unimo_ds.utils.running import run_command


def record(arguments: Sequence[str]) -> int:
    """Returns the trainer's exit status."""
    notes_path, start, *rest = arguments

    class RecordingLoader(StepLoader):
        def __iter__(self) -> Iterator[StepBatch]:
            with open(f"{notes_path}.{os.environ['RANK']}", "ab", buffering=0) as notes:
                for batch in super().__iter__():
                    keys = [key for item in batch.micro_batches for key in item.keys]
                    notes.write(json.dumps([int(start), batch.step, keys]).encode() + b"\n")
                    yield batch

    train.StepLoader = RecordingLoader
    return run_command(lambda: train.main(rest))


def record_forked(log: str, environment: Mapping[str, str], arguments: Sequence[str]) -> None:
    """The same in a process that was forked with everything imported; ends it with the status."""
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(record(arguments))


if __name__ == "__main__":
    sys.exit(record(sys.argv[1:]))
