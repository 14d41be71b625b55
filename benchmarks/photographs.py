"""The photograph experiments of docs/experiments.md: variants of the `small` recipe with several seeds, a table and curves.

    python benchmarks/photographs.py --train photos/train --held-out photos/dev --output runs/photographs \\
        --variants full "no rewrites" "no in-batch negatives" --seeds 0 1 2 --set schedule.total_steps=150

Each run is one process with one thread, `--jobs` of them at a time; a stopped run is resumed, a finished one is not
repeated. Writes `rows.csv`, `table.md` and `curves.png` into the output folder.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curves import DIRECTIONS, draw, evaluations

NO_REWRITES = tuple(
    f"contrast.{name}=0" for name in ("positives", "sentence_negatives", "phrase_negatives", "word_negatives")
)
ALL_LEVELS = ("contrast.sentence_negatives=1", "contrast.phrase_negatives=1", "contrast.word_negatives=1")
RELATED = ("contrast.related_images=1", "contrast.related_texts=1")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "no rewrites": NO_REWRITES,
    "no in-batch negatives": ("contrast.in_batch=false",),
    "positives in one sum": ("contrast.form=two_logs",),
    "joint, a logarithm each": ("contrast.rewrites=both",),
    "joint, two logarithms": ("contrast.rewrites=both", "contrast.form=two_logs"),
    "joint, one logarithm": ("contrast.rewrites=both", "contrast.form=one_log"),
    "rewrites and related items": (*ALL_LEVELS, *RELATED),
    "rewrites": ALL_LEVELS,
    "rewrites and related items, one sum": (*ALL_LEVELS, *RELATED, "contrast.form=two_logs"),
    "rewrites, one sum": (*ALL_LEVELS, "contrast.form=two_logs"),
    "related items": (*NO_REWRITES, *RELATED),
}
"""What each variant changes in the recipe."""

MEASURES = {
    **DIRECTIONS,
    "mean recall": "held_out/retrieval/mean_recall",
    "sentence": "held_out/rewrites/single/sentence",
    "phrase": "held_out/rewrites/single/phrase",
    "word": "held_out/rewrites/single/word",
}
"""Column of the table -> metric, a fraction. The last three: captions scored above their rewrites, by single encodings."""


@dataclass(frozen=True)
class Run:
    variant: str
    seed: int
    folder: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, metavar="FOLDER", help="prepared photographs to train on")
    parser.add_argument("--held-out", required=True, metavar="FOLDER", help="prepared photographs to measure on")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["full"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for every run, before its variant"
    )
    options = parser.parse_args()

    # Seed by seed, so that a stopped comparison has complete rows.
    runs = [
        Run(variant, seed, options.output / f"{variant.replace(',', '').replace(' ', '-')}-{seed}")
        for seed in options.seeds
        for variant in options.variants
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        statuses = list(pool.map(lambda run: train(run, options), runs))
    report(runs, options.output)
    return max(statuses)


def train(run: Run, options: argparse.Namespace) -> int:
    """One training process. Returns its exit status."""
    settings = (f"data.held_out_path={options.held_out}", f"seed={run.seed}", *options.set, *VARIANTS[run.variant])
    command = [sys.executable, "-m", "unimo_ds.train", "--recipe", "small", "--data", options.train]
    command += ["--run-dir", str(run.folder)]
    for setting in settings:
        command += ["--set", setting]
    with open(run.folder.with_suffix(".log"), "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"{run.variant}, seed {run.seed}: exit status {status}", flush=True)
    return status


def report(runs: Sequence[Run], output: Path) -> None:
    """Write what was measured."""
    measured = {run: evaluations(run.folder) for run in runs}
    with open(output / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", "step", *MEASURES])
        for run, rows in measured.items():
            for row in rows:
                writer.writerow([run.variant, run.seed, row["step"], *(row.get(name) for name in MEASURES.values())])
    lines = ["| variant | seeds | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    variants = dict.fromkeys(run.variant for run in runs)
    for variant in variants:
        last = [rows[-1] for run, rows in measured.items() if run.variant == variant and rows]
        cells = [spread([row[name] for row in last if row.get(name) is not None]) for name in MEASURES.values()]
        lines.append(f"| {variant} | {len(last)} | " + " | ".join(cells) + " |")
    (output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw({name: [run.folder for run in runs if run.variant == name] for name in variants}, output / "curves.png")


def spread(shares: Sequence[float]) -> str:
    """Mean in percent and, for two or more values, their range."""
    if not shares:
        return ""
    text = f"{100 * statistics.mean(shares):.1f}"
    return text if len(shares) == 1 else f"{text} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


if __name__ == "__main__":
    sys.exit(main())
