"""The trainer with a bad last rank: `spoiling_worker.py KIND STEPS ARGUMENTS...`.

nan: puts NaN into its features at those steps. hang: it stops reading there.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator

import torch

from unimo_ds import train
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.schema import StepBatch
from unimo_ds.utils.errors import run_command

KIND, STEPS = sys.argv[1], {int(step) for step in sys.argv[2].split(",")}


class SpoilingLoader(StepLoader):
    def __iter__(self) -> Iterator[StepBatch]:
        is_last_rank = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        for batch in super().__iter__():
            if is_last_rank and batch.step in STEPS:
                if KIND == "hang":
                    time.sleep(600)
                first, *rest = batch.micro_batches
                spoilt = dataclasses.replace(first, region_features=first.region_features * float("nan"))
                batch = dataclasses.replace(batch, micro_batches=(spoilt, *rest))
            yield batch


if __name__ == "__main__":
    train.StepLoader = SpoilingLoader
    sys.exit(run_command(lambda: train.main(sys.argv[3:])))
