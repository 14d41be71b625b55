"""The end of `slurm/finetune.sh`, with stand-ins for the commands of Slurm (on a real one: test_slurm.py)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("step_status", "job_state", "is_requeued"),
    [(75, "RUNNING", True), (75, "CANCELLED", False), (2, "RUNNING", False), (0, "RUNNING", False)],
)
def test_only_a_job_that_was_interrupted_is_requeued(
    step_status: int, job_state: str, is_requeued: bool, tmp_path: Path
) -> None:
    commands = {
        "srun": f"exit {step_status}",
        "scontrol": f'[ "$1" = show ] && echo "JobState={job_state}" || echo "$*" >>{tmp_path}/called',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    result = subprocess.run(["bash", str(ROOT / "slurm" / "finetune.sh"), "vqa"], env=environment, check=False)
    assert result.returncode == step_status
    called = tmp_path / "called"
    assert (called.read_text() if called.exists() else "") == ("requeue 7\n" if is_requeued else "")
