"""What training waits for: packed steps of a data folder from one loader process, and their cost to the trainer's process.

    python -m benchmarks.loader_steps --data DIR [--recipe small] [--set dotted.key=value ...]

Processor time, including system time, of the process that reads, draws, masks, tokenises, packs and sends, and of the one that
takes the steps. A GPU that trains N positions per second needs N / positions_per_processor_second such processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import psutil

from benchmarks import measuring
from unimo_ds import recipes
from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.loader import StepLoader
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.running import run_command

_WARM_UP = 12
"""Steps until the loader's memory stops growing and most words have been seen."""


def measure(config: RunConfig, *, steps: int) -> dict[str, Any]:
    """`steps` consecutive steps in a fresh loader process, regardless of epochs."""
    loader = iter(StepLoader(Corpus.open(config.data.path), config, 0, 1, 0, steps + 2 * _WARM_UP))
    for _ in range(_WARM_UP):
        next(loader)
    (child,) = psutil.Process().children()
    samples = positions = num_bytes = 0
    worker, trainer = -_processor_seconds(child), -time.process_time()
    for _ in range(steps):
        batch = next(loader)
        samples += batch.num_samples
        positions += sum(micro_batch.num_positions for micro_batch in batch.micro_batches)
        num_bytes += batch.bytes_read
    worker, trainer = worker + _processor_seconds(child), trainer + time.process_time()
    return {
        "samples_per_processor_second": samples / worker,
        "positions_per_processor_second": positions / worker,
        "megabytes_per_processor_second": num_bytes / worker / 1e6,
        "positions_per_sample": positions / samples,
        "trainer_microseconds_per_sample": trainer / samples * 1e6,
    }


def _processor_seconds(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _main(arguments: argparse.Namespace) -> None:
    config = recipes.with_data(recipes.load(arguments.recipe), arguments.data)
    config = apply_overrides(config, [*arguments.set, "data.num_workers=1", "data.prefetch_steps=1"])
    rounds = [measure(config, steps=arguments.steps) for _ in range(arguments.rounds)]
    row = {"case": arguments.case or arguments.recipe, "rounds": arguments.rounds}
    row |= {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(measuring.table([row], list(row)))
    print("wrote", measuring.write("loader_steps", [row], path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data folder")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--case", help="what to call the row")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
