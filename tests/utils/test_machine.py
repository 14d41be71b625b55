"""Memory of a machine that a Slurm job or a container may use (control groups of both versions), and devices of networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from unimo_ds.utils import machine
from unimo_ds.utils.machine import memory_limit

V2 = "0::/slurm/job_7/step_0\n"
V1 = "12:pids:/\n5:cpu,memory:/slurm/uid_1/job_7\n1:name=systemd:/x\n0::/init\n"


def limit(folder: Path, lines: str, files: dict[str, str]) -> float:
    groups, mounts = folder / "cgroup", folder / "mounts"
    mounts.mkdir(exist_ok=True)
    groups.write_text(lines)
    for name, content in files.items():
        (mounts / name).parent.mkdir(parents=True, exist_ok=True)
        (mounts / name).write_text(content)
    return memory_limit(groups, mounts)


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "slurm/job_7/step_0/memory.max": "max\n",
        "slurm/job_7/memory.max": "4096\n",
        "slurm/memory.max": "8192\n",
        "elsewhere/memory.max": "1\n",
    }
    assert limit(tmp_path, V2, files) == 4096


def test_version_1_has_other_names(tmp_path: Path) -> None:
    top, job = "memory/memory.limit_in_bytes", "memory/slurm/uid_1/job_7/memory.limit_in_bytes"
    assert limit(tmp_path, V1, {top: "9223372036854771712\n", job: "5000\n"}) == 5000


def test_a_container_sees_its_limit_at_the_top(tmp_path: Path) -> None:
    for group in ("/docker/abc", "/../../outside", "/"):
        assert limit(tmp_path, f"0::{group}\n", {"memory.max": "6000\n"}) == 6000


def test_without_groups_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_limit(tmp_path / "none", tmp_path) == math.inf
    assert limit(tmp_path, "0::/\n", {}) == math.inf
    whole = machine.memory_gib()
    monkeypatch.setattr(machine, "memory_limit", lambda: whole * 2**30 / 4)
    assert machine.memory_gib() == whole / 4


def test_networks_run_where_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda: 2)
    monkeypatch.setenv("UNIMO_WORKER", "3")
    assert machine.worker_device() == torch.device("cuda", 1)
    with machine.networks_on(torch.device("cpu")), machine.networks_on(None):
        assert machine.worker_device() == torch.device("cpu")
    assert machine.worker_device() == torch.device("cuda", 1)
