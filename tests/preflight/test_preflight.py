"""The check of nodes as it runs: real processes on loopback addresses that play nodes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest

from tests.data.shard_folders import make_folder
from unimo_ds.data.storage import retrying
from unimo_ds.preflight import command
from unimo_ds.preflight import node as node_checks
from unimo_ds.preflight.network import doorbell, unreachable

NODES = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "train").parent


def start(node: str, number: int, data: Path, run_dir: Path, *options: str) -> subprocess.Popen[str]:
    """One task as srun would start it, on a node of the job."""
    environment = {
        **os.environ,
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": str(len(NODES)),
        "SLURM_STEP_NODELIST": "127.0.0.[2-4]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "1",
        "SLURMD_NODENAME": node,
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "unimo_ds", "doctor", "preflight", "--data", str(data), "--run-dir", str(run_dir)]
    return subprocess.Popen(
        [*command, "--min-free-gib=0.01", "--all-reduce-mib=1", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(tasks: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        return [(task.wait(timeout=600), task.communicate()[0]) for task in tasks]
    finally:
        for task in tasks:
            task.kill()


def test_three_nodes_that_are_fit(data: Path, tmp_path: Path) -> None:
    done = finish([start(node, number, data, tmp_path) for number, node in enumerate(NODES)])
    assert [status for status, _ in done] == [0, 0, 0], done
    assert "3 of 3 nodes are fit" in done[0][1]
    assert "all-reduce of 1 MiB over 3 ranks" in done[0][1]
    (verdict_file,) = tmp_path.glob("preflight/*/verdict.json")
    verdict = json.loads(verdict_file.read_text())
    assert verdict["bad"] == {}
    assert [link["nodes"] for link in verdict["network"]["links"]] == [NODES[:2], NODES[1:], [NODES[2], NODES[0]]]
    assert all(link["gigabytes_per_second"] > 0 for link in verdict["network"]["links"])
    assert verdict_file.with_name("bad_nodes").read_text() == ""


def test_a_silent_node_and_one_without_data_are_named(data: Path, tmp_path: Path) -> None:
    """The third never starts, though it had in an earlier step of the job; the second does not see the data."""
    earlier = tmp_path / "preflight" / f"{os.getpid()}-0" / f"{NODES[2]}.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text(json.dumps(dataclasses.asdict(node_checks.NodeReport(NODES[2], f"{NODES[2]}:1"))))
    tasks = [
        start(NODES[0], 0, data, tmp_path, "--wait=90"),
        start(NODES[1], 1, tmp_path / "nothing", tmp_path, "--wait=90"),
    ]
    done = finish(tasks)
    assert done[0][0] == 1, done
    assert "1 of 3 nodes are fit" in done[0][1]
    assert f"BAD {NODES[1]}: no manifest.json in {tmp_path}/nothing" in done[0][1]
    assert f"BAD {NODES[2]}: did not report" in done[0][1]
    (bad_nodes,) = tmp_path.glob("preflight/*/bad_nodes")
    assert bad_nodes.read_text() == ",".join(NODES[1:])


def test_a_launcher_that_does_not_say_which_node_this_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """mpirun over two machines."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    assert command.main(["--data", str(data), "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("start it with srun\n")


def test_data_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data" / "train"
    shutil.copytree(data / "train", copy)
    assert node_checks.problems_of_data(str(tmp_path / "data")) == []
    assert node_checks.problems_of_data(str(copy)) == []
    shard = next(copy.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    assert "bytes here" in node_checks.problems_of_data(str(copy))[0]
    shard.unlink()
    assert node_checks.problems_of_data(str(copy)) == [f"{shard} cannot be read (No such file or directory)"]
    (copy / "manifest.json").write_text("{")
    assert "manifest.json" in node_checks.problems_of_data(str(copy))[0]


def test_every_folder_of_several_is_looked_at(data: Path, tmp_path: Path) -> None:
    missing = [tmp_path / "one", tmp_path / "other"]
    options = Namespace(data=f"{missing[0]}::{data}::{missing[1]}", run_dir=tmp_path / "run", gpus=0, min_free_gib=0.0)
    problems = command._report(options, "node1", 1).problems
    assert problems == tuple(f"no manifest.json in {folder} or its train/" for folder in missing)


def test_remote_data_is_read_where_it_lies(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run reads URLs, so a preflight that took them for missing folders would let none start."""
    monkeypatch.setattr(retrying, "_FIRST_PAUSE", 0.001)
    files = fsspec.filesystem("memory")
    files.pipe_file("/preflight/manifest.json", (data / "train" / "manifest.json").read_bytes())
    assert node_checks.problems_of_data("memory://preflight") == []
    files.pipe_file("/preflight/manifest.json", b"{")
    assert "damaged" in node_checks.problems_of_data("memory://preflight")[0]
    files.rm("/preflight", recursive=True)
    assert "cannot read memory://preflight/manifest.json" in node_checks.problems_of_data("memory://preflight")[0]
    assert "hunter2" not in node_checks.problems_of_data("pipe://user:hunter2@host/data")[0]


def test_run_directory(tmp_path: Path) -> None:
    assert node_checks.problems_of_run_dir(tmp_path / "run", min_free_bytes=1) == []
    assert list((tmp_path / "run").iterdir()) == []
    assert "wanted (--min-free-gib)" in node_checks.problems_of_run_dir(tmp_path, min_free_bytes=2**60)[0]
    (tmp_path / "file").touch()
    assert "cannot write" in node_checks.problems_of_run_dir(tmp_path / "file", min_free_bytes=1)[0]


def test_gpus_that_are_not_there() -> None:
    assert node_checks.problems_of_gpus(0) == []
    assert "of 512 GPUs are usable" in node_checks.problems_of_gpus(512)[0]


def test_the_doorbell_answers_until_it_is_left() -> None:
    with doorbell() as port:
        assert unreachable({"here": f"127.0.0.1:{port}", "nowhere": "127.0.0.1:1"}) == ["nowhere"]
    assert unreachable({"here": f"127.0.0.1:{port}"}) == ["here"]


def test_an_error_leaves_no_doorbell_behind() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), doorbell():
        raise ZeroDivisionError
    assert threading.active_count() == before
