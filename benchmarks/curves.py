"""R@10 of runs over their steps, as a picture: `python benchmarks/curves.py runs/photos --output curves.png`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from unimo_ds.utils import records

DIRECTIONS = {
    "R@10 text to image": "held_out/retrieval/text_to_image/r@10",
    "R@10 image to text": "held_out/retrieval/image_to_text/r@10",
}


def evaluations(run: Path) -> list[Mapping[str, float]]:
    """The held-out measurements of a run directory, in step order; empty if it has none yet."""
    rows = [record.values for record in records.read(run / records.METRICS_FILE)]
    return [row for row in rows if DIRECTIONS["R@10 text to image"] in row]


def draw(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Both directions side by side, one colour per label, one line per run directory."""
    first = next(iter(runs.values()))[0]
    num_images = json.loads((first / "config.json").read_text())["evaluation"]["num_pairs"]
    figure, panes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for pane, (title, name) in zip(panes, DIRECTIONS.items(), strict=True):
        for number, (label, folders) in enumerate(runs.items()):
            for folder in folders:
                rows = evaluations(folder)
                pane.plot(
                    [row["step"] for row in rows],
                    [100 * row[name] for row in rows],
                    color=f"C{number}",
                    marker="o",
                    markersize=3,
                    linewidth=1.2,
                    label=label if folder == folders[0] else None,
                )
        pane.axhline(100 * 10 / num_images, color="grey", linewidth=0.8, linestyle=":", label="chance")
        pane.set(title=title, xlabel="step", ylim=(0, None))
        pane.grid(alpha=0.3)
    panes[0].set_ylabel("%")
    panes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="a PNG")
    options = parser.parse_args()
    draw({run.name: [run] for run in options.runs}, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
