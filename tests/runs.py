"""Reading what a run has written."""

from __future__ import annotations

import json
from pathlib import Path


def logged(run_dir: Path) -> dict[int, dict[str, float]]:
    """Every logged number of each step that does not depend on the clock; a step that comes twice is an error."""
    result: dict[int, dict[str, float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "event" not in values:
            step = values.pop("step")
            assert step not in result, f"step {step} is logged twice"
            result[step] = {
                name: value for name, value in values.items() if not name.startswith(("time", "speed", "data"))
            }
    return result
