"""Reading what a run has written."""

from __future__ import annotations

import json
from pathlib import Path


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
