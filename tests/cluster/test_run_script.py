"""`slurm/run.sh` when nodes fail, with stand-ins for the commands of Slurm (on a real one: test_slurm.py)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("before", "after"), [("3\n", "4"), ("08\n", "9"), (None, "1"), ("a[$(touch {folder}/ran)]\n", "1"), ("", "1")]
)
def test_failed_starts_are_counted_and_their_file_is_not_run(before: str | None, after: str, tmp_path: Path) -> None:
    run = tmp_path / "a run's $(folder)"
    run.mkdir()
    if before is not None:
        (run / "failed_starts").write_text(before.format(folder=tmp_path))
    for name, body in {"srun": "exit 1", "scontrol": "echo JobState=RUNNING"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURMD_NODENAME": "node1",
        "RUN_DIR": str(run),
    }
    command = ["bash", str(ROOT / "slurm" / "run.sh"), "base_32xv100"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert (run / "failed_starts").read_text().strip() == after
    assert not (tmp_path / "ran").exists()
