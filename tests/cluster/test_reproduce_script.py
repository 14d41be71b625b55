"""slurm/reproduce.sh against an `sbatch` that only writes down what it was given: what waits for what, and what is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SBATCH = """#!/bin/bash
number=$(($(wc -l <"$SUBMITTED") + 1))
(IFS='|'; echo "$*") >>"$SUBMITTED"
[ "$number" -lt "${FULL:-100}" ] || exit 1
echo "$number$CLUSTER"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a space in its name."""
    place = tmp_path / "a place"
    for task in ("my task", "sst2"):
        (place / "tasks" / task).mkdir(parents=True)
    sbatch = place / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    (place / "submitted").touch()
    return place


def reproduce(place: Path, **variables: str) -> tuple[int, list[list[str]]]:
    """Exit status, and the words of each call of sbatch."""
    environment = {
        **os.environ,
        "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
        "SUBMITTED": str(place / "submitted"),
        "TASKS": str(place / "tasks"),
        "RUN_DIR": f"{place}/run/",
        **variables,
    }
    words = ["bash", str(REPOSITORY / "slurm" / "reproduce.sh"), "base", "--set", "seed=1"]
    status = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=60).returncode
    return status, [line.split("|") for line in (place / "submitted").read_text().splitlines()]


@pytest.mark.parametrize("cluster", ["", ";big"])
def test_jobs_wait_for_each_other_wherever_they_run(place: Path, cluster: str) -> None:
    status, calls = reproduce(place, CLUSTER=cluster)
    assert status == 0
    waits = [next((word.rpartition(":")[2] for word in call if "afterok" in word), "") for call in calls]
    assert waits == ["", "1", "2", "3", "3", "3"]
    assert calls[2][-3:] == ["slurm/base.sh", "--set", "seed=1"]
    assert calls[3][-1] == f"{place}/run-finetuned/zero_shot.json"
    assert calls[4][-9:-2] == [
        "my task",
        "--checkpoint",
        f"{place}/run",
        "--data",
        f"{place}/tasks/my task",
        "--run-dir",
        f"{place}/run-finetuned/my task",
    ]


def test_a_job_that_slurm_refuses_ends_it(place: Path) -> None:
    status, calls = reproduce(place, FULL="5")
    assert status == 1
    assert len(calls) == 5
