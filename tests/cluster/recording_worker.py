"""The trainer, which also notes what it reads: `recording_worker.py NOTES ARGUMENTS...` adds a line for every batch to NOTES.

A line is `[start, step, [key, ...]]` with the samples of this rank; `start` is what the environment variable START says. It is in
the file before the step is taken, whatever becomes of the process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

from unimo_ds import train
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.schema import StepBatch
from unimo_ds.utils.errors import run_command


class RecordingLoader(StepLoader):
    def __iter__(self) -> Iterator[StepBatch]:
        with open(f"{sys.argv[1]}.{os.environ['RANK']}", "ab", buffering=0) as notes:
            for batch in super().__iter__():
                keys = [key for item in batch.micro_batches for key in item.keys]
                notes.write(json.dumps([int(os.environ["START"]), batch.step, keys]).encode() + b"\n")
                yield batch


if __name__ == "__main__":
    train.StepLoader = RecordingLoader
    sys.exit(run_command(lambda: train.main(sys.argv[2:])))
