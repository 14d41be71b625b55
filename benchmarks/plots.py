"""Bar charts of the row files: ratios of medians, as pictures for docs/performance.md.

python -m benchmarks.plots [--output docs/pictures]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks import measuring

OURS_COLOUR, OTHER_COLOUR = "#2a6f97", "#b8b8b8"
PICTURES = (
    ("step_cpu", "processor_ratio_median", "step", "processor time of a step, ours = 1", 0.0),
    (
        "hard_negatives_cpu",
        "padded_processor_ratio_median",
        "hard_negatives",
        "pairs a processor second, padded = 1",
        0.0,
    ),
    ("loader", "samples_per_processor_second", "loader", "samples a processor second", 0.0),
    ("balance", "max_over_mean_median", "balance", "largest rank over the mean rank", 1.01),
    ("zero_cpu", "ddp_ratio_median", "zero", "time of a step, DDP = 1", 1.02),
)
"""Row file, key of what is drawn, name of the picture, unit, and the target if a line marks one."""


def bars(axes: Any, rows: Sequence[dict[str, Any]], key: str, *, title: str, unit: str, wanted: float = 0.0) -> None:
    """A bar for each row, this project's in colour; a line at the target."""
    names = [str(row["contender"]).replace(", to", ",\nto").replace(", ", ",\n", 1) for row in rows]
    values = [float(row[key]) for row in rows]
    colours = [OTHER_COLOUR if _is_other(row) else OURS_COLOUR for row in rows]
    places = range(len(rows))
    axes.barh(places, values, color=colours)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    for place, value in zip(places, values, strict=True):
        label = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(label, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=white)
    if wanted:
        axes.axvline(wanted, color="#c1121f", linewidth=1, linestyle="--")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(f"{unit}; dashed: the aim" if wanted else unit, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)


def _is_other(row: dict[str, Any]) -> bool:
    name = str(row["contender"])
    return not (name.startswith(("ours", "zero")) or name.endswith("packed"))


def picture(name: str, key: str, path: Path, *, unit: str, wanted: float = 0.0) -> Path:
    """A panel for each case of a row file that has `key`."""
    content = measuring.read(name)
    rows = [row for row in content["rows"] if key in row]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    height = 0.6 + 0.36 * max(sum(row["case"] == case for row in rows) for case in cases)
    columns = min(len(cases), 3 if len(cases) == 3 else 2)
    lines = -(-len(cases) // columns)
    size = (4.4 * columns, (height + 0.9) * lines)
    figure, panels = pyplot.subplots(lines, columns, figsize=size, squeeze=False)
    for axes, case in zip(panels.flat, cases, strict=False):
        own = [row for row in rows if row["case"] == case]
        bars(axes, own, key, title=case, unit=unit, wanted=wanted)
    figure.text(
        0.005, 0.005, f"{content['hardware']}, {content['date']}, {content['commit']}", fontsize=6, color="#707070"
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for file, key, name, unit, wanted in PICTURES:
        print(picture(file, key, output / f"performance_{name}.png", unit=unit, wanted=wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
