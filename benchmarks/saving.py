"""How long training stands still for its checkpoints: waiting for the disk, and writing in the background, in turn in one run.

    python benchmarks/saving.py --run-dir runs/saving --json rows.json [--set KEY=VALUE ...]      two processes, the demo's data

Every other save waits until it is on disk. A row for each way: saves, median and worst seconds that training stood still, median
seconds until a checkpoint was complete, and the share of training time that a save takes at the recipe's own interval
(`checkpoint.every_steps`). Everything is read from the run's metrics.jsonl; the last save always waits and is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimo_ds import recipes, train
from unimo_ds.config import apply_overrides
from unimo_ds.engine import checkpoint
from unimo_ds.engine.state import Progress
from unimo_ds.utils.errors import run_command


def train_alternating(arguments: Sequence[str], every: int) -> int:
    """The trainer, one of whose saves in two waits. Returns its exit status."""

    class AlternatingSaver(checkpoint.Saver):
        def save(self, progress: Progress, *, wait: bool) -> None:
            super().save(progress, wait=wait or progress.step // every % 2 == 1)

    checkpoint.Saver = AlternatingSaver  # type: ignore[misc]
    return train.main(arguments)


def run(run_dir: Path, *, steps: int, every: int, settings: Sequence[str]) -> None:
    """One run on two processes."""
    fixed = [
        f"checkpoint.every_steps={every}",
        f"schedule.total_steps={steps}",
        "schedule.warmup_steps=2",
        "evaluation.every_steps=0",
        "logging.every_steps=1",
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__),
            *("--worker", str(every), "--run-dir", str(run_dir)),
            *(f"--set={setting}" for setting in [*fixed, *settings]),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def rows(run_dir: Path, *, steps: int, interval: int) -> list[dict[str, Any]]:
    """interval: steps between saves that the share is stated for."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    saves = [line for line in lines if line.get("event") == "saved" and line["step"] < steps]
    step_seconds = statistics.median(line["speed/seconds_per_step"] for line in lines if "event" not in line)
    made = []
    for name, chosen in (
        ("waiting", [save for save in saves if not save["write_seconds"]]),
        ("in the background", [save for save in saves if save["write_seconds"]]),
    ):
        stalls = [save["stall_seconds"] for save in chosen]
        stall = statistics.median(stalls)
        made.append(
            {
                "saving": name,
                "saves": len(chosen),
                "stall_median_seconds": stall,
                "stall_worst_seconds": max(stalls),
                "complete_median_seconds": statistics.median(
                    save["stall_seconds"] + save["write_seconds"] for save in chosen
                ),
                "step_median_seconds": step_seconds,
                "interval_steps": interval,
                "share_at_interval": stall / (interval * step_seconds + stall),
            }
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/saving"), help="new or empty")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=126)
    parser.add_argument("--every", type=int, default=6, help="steps between saves")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        arguments = ["--run-dir", str(options.run_dir), *(f"--set={setting}" for setting in options.set)]
        return run_command(lambda: train_alternating(arguments, options.worker))
    run(options.run_dir, steps=options.steps, every=options.every, settings=options.set)
    interval = apply_overrides(recipes.load("demo"), options.set).checkpoint.every_steps
    found = rows(options.run_dir, steps=options.steps, interval=interval)
    for row in found:
        print(json.dumps(row))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
