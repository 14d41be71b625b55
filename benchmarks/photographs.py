"""The photograph experiments of docs/experiments.md: variants of the `small` recipe over seeds, a table and the curves.

    python benchmarks/photographs.py --train photos/train --held-out photos/dev --output runs/photographs \\
        --variants full "no rewrites" "no in-batch negatives" --seeds 0 1 2 --set schedule.total_steps=150

Each run is one process with one thread, `--jobs` of them side by side; a run that was stopped goes on, a finished one is not
made again. Writes `rows.csv`, `table.md` and `curves.png` into the output folder.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

NO_REWRITES = tuple(
    f"contrast.{name}=0" for name in ("positives", "sentence_negatives", "phrase_negatives", "word_negatives")
)
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "no rewrites": NO_REWRITES,
    "no in-batch negatives": ("contrast.in_batch=false",),
    "positives in one sum": ("contrast.form=two_logs",),
    "joint, a logarithm each": ("contrast.rewrites=both",),
    "joint, two logarithms": ("contrast.rewrites=both", "contrast.form=two_logs"),
    "joint, one logarithm": ("contrast.rewrites=both", "contrast.form=one_log"),
}
"""What each variant changes in the recipe."""

MEASURES = {
    "R@10 text to image": "held_out/retrieval/text_to_image/r@10",
    "R@10 image to text": "held_out/retrieval/image_to_text/r@10",
    "mean recall": "held_out/retrieval/mean_recall",
    "joint, sentence": "held_out/rewrites/joint/sentence",
    "joint, phrase": "held_out/rewrites/joint/phrase",
    "joint, word": "held_out/rewrites/joint/word",
}
"""Columns of the table, as the run's metrics name them: shares of one."""


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

    # Seed by seed, so that a stopped comparison has whole rows.
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


def evaluations(run: Run) -> list[dict[str, float]]:
    """The held-out measurements of a run, in the order of their steps; none where it has not begun."""
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if MEASURES["mean recall"] in row]


def report(runs: Sequence[Run], output: Path) -> None:
    """Write what was measured."""
    measured = {run: evaluations(run) for run in runs}
    with open(output / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", "step", *MEASURES])
        for run, rows in measured.items():
            for row in rows:
                writer.writerow([run.variant, run.seed, row["step"], *(row.get(name) for name in MEASURES.values())])
    lines = ["| variant | seeds | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    for variant in dict.fromkeys(run.variant for run in runs):
        last = [rows[-1] for run, rows in measured.items() if run.variant == variant and rows]
        cells = [spread([row[name] for row in last if row.get(name) is not None]) for name in MEASURES.values()]
        lines.append(f"| {variant} | {len(last)} | " + " | ".join(cells) + " |")
    (output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    num_images = json.loads((runs[0].folder / "config.json").read_text())["evaluation"]["num_pairs"]
    draw(measured, output / "curves.png", chance=10 / num_images)


def spread(shares: Sequence[float]) -> str:
    """Mean in percent and, from two values on, their range."""
    if not shares:
        return ""
    text = f"{100 * statistics.mean(shares):.1f}"
    return text if len(shares) == 1 else f"{text} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def draw(measured: Mapping[Run, Sequence[Mapping[str, float]]], path: Path, *, chance: float) -> None:
    """R@10 of both directions over the steps, a thin line a run, one colour a variant."""
    variants = list(dict.fromkeys(run.variant for run in measured))
    figure, panes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for pane, name in zip(panes, list(MEASURES)[:2], strict=True):
        for run, rows in measured.items():
            is_first = run == next(other for other in measured if other.variant == run.variant)
            pane.plot(
                [row["step"] for row in rows],
                [100 * row[MEASURES[name]] for row in rows],
                color=f"C{variants.index(run.variant)}",
                marker="o",
                markersize=3,
                linewidth=1.2,
                label=run.variant if is_first else None,
            )
        pane.axhline(100 * chance, color="grey", linewidth=0.8, linestyle=":", label="chance")
        pane.set(title=name, xlabel="step", ylim=(0, None))
        pane.grid(alpha=0.3)
    panes[0].set_ylabel("R@10, %")
    panes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
