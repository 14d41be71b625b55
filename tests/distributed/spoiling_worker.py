"""The trainer with a bad last rank: `spoiling_worker.py KIND=STEP,STEP,...;... ARGUMENTS...`.

nan: puts NaN into its features at those steps. spike: targets that no model can reach. hang: it stops reading there. slow: it
reads for half a second longer. unreadable: it cannot read its data from then on. stop: it gets SIGUSR1 before the step. clock:
from then on wall clocks are an hour behind. memory: it asks for more than there is. note=FILE: every rank adds a line
`[step, [key, ...]]` for each batch that it reads to FILE.RANK.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

import torch

from unimo_ds import train
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.schema import PackedBatch, StepBatch
from unimo_ds.utils.running import run_command

PARTS = [part.partition("=") for part in sys.argv[1].split(";")]
NOTES = next((value for kind, _, value in PARTS if kind == "note"), "")
STEPS = {kind: {int(step) for step in steps.split(",")} for kind, _, steps in PARTS if kind != "note"}
CLOCK = time.time


def refuse(descriptor: int, size: int, offset: int) -> bytes:
    raise PermissionError(errno.EACCES, "Permission denied")


def spoil(batch: StepBatch) -> StepBatch:
    if batch.step in STEPS.get("hang", ()):
        time.sleep(600)
    if batch.step in STEPS.get("unreadable", ()):
        os.pread = refuse
    if batch.step in STEPS.get("slow", ()):
        time.sleep(0.5)
    if batch.step in STEPS.get("stop", ()):
        os.kill(os.getpid(), signal.SIGUSR1)
    if batch.step in STEPS.get("clock", ()):
        time.time = lambda: CLOCK() - 3600.0
    if batch.step in STEPS.get("memory", ()):
        PackedBatch.to = lambda self, device: torch.empty(1 << 50, device=device)
    first, *rest = batch.micro_batches
    if batch.step in STEPS.get("nan", ()):
        first = dataclasses.replace(first, region_features=first.region_features * float("nan"))
    if batch.step in STEPS.get("spike", ()):
        first = dataclasses.replace(first, masked_region_features=first.masked_region_features * 30)
    return dataclasses.replace(batch, micro_batches=(first, *rest))


class SpoilingLoader(StepLoader):
    def __iter__(self) -> Iterator[StepBatch]:
        is_last_rank = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        for batch in super().__iter__():
            if NOTES:
                with open(f"{NOTES}.{torch.distributed.get_rank()}", "a") as notes:
                    notes.write(
                        json.dumps([batch.step, [key for item in batch.micro_batches for key in item.keys]]) + "\n"
                    )
            yield spoil(batch) if is_last_rank else batch


if __name__ == "__main__":
    train.StepLoader = SpoilingLoader
    sys.exit(run_command(lambda: train.main(sys.argv[2:])))
