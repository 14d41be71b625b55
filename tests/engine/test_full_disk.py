"""R8 over a whole run, on a file system that is really full (one checkpoint: test_checkpoint.py)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.distributed.launching import started
from tests.distributed.test_train import TRAIN, arguments
from tests.engine.disks import fill
from tests.runs import write_small_corpus
from unimo_ds.engine import checkpoint_folder


def test_a_run_outlives_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """Checkpoints are given up with a warning, lines of metrics.jsonl wait, and all is well once there is room again."""
    corpus, run_dir, total = tmp_path / "corpus", small_disk / "run", 100
    write_small_corpus(corpus)
    flags = arguments(corpus, run_dir, schedule__total_steps=total, data__num_workers=0)
    log = tmp_path / "log"
    with log.open("w") as file, started([sys.executable, str(TRAIN), *flags], output=file) as process:

        def wait_for(text: str) -> None:
            deadline = time.monotonic() + 300
            while text not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            assert text in log.read_text(), log.read_text()[-3000:]

        wait_for("saved ")
        filler = fill(small_disk)
        wait_for("training goes on and tries again")
        wait_for("its lines wait, training goes on")
        filler.unlink()
        assert process.wait(300) == 0, log.read_text()[-3000:]
    assert "no room for a checkpoint" in log.read_text()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "event" not in line] == list(range(1, total + 1))
    assert checkpoint_folder.problems_of(run_dir / "checkpoints" / f"step-{total}") == []
