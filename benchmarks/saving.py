"""How long training stands still for its checkpoints: waiting for the disk, and writing in the background.

    python benchmarks/saving.py --run-dir runs/saving [--set KEY=VALUE ...]      two processes, the demo's data, one run each

Prints a row of a table for each: number of checkpoints, seconds that training stood still for them, their share of the time of
all steps, and seconds until a checkpoint was complete. Everything is read from the runs' metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

_STEPS, _EVERY = 60, 6


def train(run_dir: Path, *, in_background: bool, settings: list[str]) -> None:
    """One run on two processes."""
    fixed = [
        f"checkpoint.in_background={str(in_background).lower()}",
        f"checkpoint.every_steps={_EVERY}",
        f"schedule.total_steps={_STEPS}",
        "schedule.warmup_steps=2",
        "evaluation.every_steps=0",
        "logging.every_steps=1",
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "unimo_ds.train", "--run-dir", str(run_dir)),
            *(f"--set={setting}" for setting in [*fixed, *settings]),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def row(run_dir: Path) -> str:
    """The saves between the first and the last step; the last save always waits and is left out."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    saves = [line for line in lines if line.get("event") == "saved" and line["step"] < _STEPS]
    times = [line["time"] for line in lines if "event" not in line]
    stall = sum(save["stall_seconds"] for save in saves)
    complete = sum(save["stall_seconds"] + save["write_seconds"] for save in saves)
    seconds = max(times) - min(times)
    return (
        f"| {run_dir.name} | {len(saves)} | {stall / len(saves):.3f} s | {stall / seconds:.2%} | "
        f"{complete / len(saves):.3f} s | {seconds:.1f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/saving"), help="folder for the two runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of both runs")
    options = parser.parse_args()
    print(
        "| saving | checkpoints | stall of each | share of the time | until complete | steps took |\n|---|---|---|---|---|---|"
    )
    for name, in_background in (("waiting", False), ("in_background", True)):
        train(options.run_dir / name, in_background=in_background, settings=options.set)
        print(row(options.run_dir / name), flush=True)


if __name__ == "__main__":
    main()
