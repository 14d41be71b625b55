"""What runs of tests are trained on, waiting for them, and reading what they have written."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from unimo_ds.data.prepare.scenes.writing import write_demo_corpus


def write_small_corpus(folder: Path) -> Path:
    """Scenes of `make demo`, so few that a short run crosses the end of an epoch. Returns the folder, of train/ and held_out/."""
    write_demo_corpus(folder, num_pairs=80, num_images=20, num_texts=20, num_held_out=8)
    return folder


def steps_so_far(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def await_two_steps(run_dir: Path, launcher: subprocess.Popen[str], *, seconds: float = 600.0) -> None:
    """Return when the run has logged two steps, has ended, or the time is over."""
    deadline = time.monotonic() + seconds
    while steps_so_far(run_dir) < 2 and time.monotonic() < deadline and launcher.poll() is None:
        time.sleep(0.01)


def logged(run_dir: Path) -> dict[int, dict[str, float]]:
    """Every logged number of each step that does not depend on the clock; what comes twice in a step is an error."""
    result: dict[int, dict[str, float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "event" not in values:
            step = values.pop("step")
            kept = {name: value for name, value in values.items() if not name.startswith(("time", "speed", "data"))}
            assert not result.setdefault(step, {}).keys() & kept.keys(), f"step {step} is logged twice"
            result[step] |= kept
    return result
