"""The trainer with bad inputs: `spoiling_worker.py STEPS ARGUMENTS...` puts NaN into the last rank's features at those steps."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import torch

from unimo_ds import train
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.schema import StepBatch
from unimo_ds.utils.errors import run_command

STEPS = {int(step) for step in sys.argv[1].split(",")}


class SpoilingLoader(StepLoader):
    def __iter__(self) -> Iterator[StepBatch]:
        is_last_rank = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        for batch in super().__iter__():
            if is_last_rank and batch.step in STEPS:
                first, *rest = batch.micro_batches
                spoilt = dataclasses.replace(first, region_features=first.region_features * float("nan"))
                batch = dataclasses.replace(batch, micro_batches=(spoilt, *rest))
            yield batch


if __name__ == "__main__":
    train.StepLoader = SpoilingLoader
    sys.exit(run_command(lambda: train.main(sys.argv[2:])))
