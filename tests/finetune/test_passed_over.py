"""A fine-tuning whose last batches a rollback has passed over is done without them, and has a result."""

from __future__ import annotations

import json
from pathlib import Path

from tests.distributed.launching import launch
from tests.finetune import small
from tests.finetune.test_run import MAIN, arguments
from unimo_ds.engine import rollback


def test_the_end_is_reached_where_the_rest_is_passed_over(tmp_path: Path) -> None:
    small.write_checkpoint(tmp_path / "start")
    small.write_sst2(tmp_path / "data", train=40, dev=10)
    run_dir = tmp_path / "run" / "seed-0"
    run_dir.mkdir(parents=True)
    rollback.begin(run_dir, rollback.Rollback(first=3, stop=5, reason="spikes", is_done=True))
    launch(MAIN, arguments(tmp_path, "run", "--set", "schedule.total_steps=5"), processes=1)
    assert (run_dir / "checkpoints" / "latest").read_text() == "step-5\n"
    (seed,) = json.loads((tmp_path / "run" / "results.json").read_text())["seeds"]
    assert seed["checkpoint"] == "step-5"
