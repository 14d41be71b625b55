"""Real runs of two processes with W&B (offline) and trackio, read back by their own means: `make trackers`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import launch, processes_of_rank, started, torchrun
from tests.distributed.test_train import SPOILING, TRAIN, arguments, is_running
from tests.runs import steps_so_far
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus
from unimo_ds.engine import checkpoint_folder

WHY = "no trackers here: make trackers"
wandb = pytest.importorskip("wandb", reason=WHY)
pytest.importorskip("trackio", reason=WHY)

SECRET = "not-for-anybody-else"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of all runs: a corpus, and the libraries told to stay on this machine."""
    folder = tmp_path_factory.mktemp("tracked")
    write_demo_corpus(folder / "demo", num_pairs=80, num_images=20, num_texts=20, num_held_out=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        yield folder


def flags(folder: Path, name: str, **changes: object) -> list[str]:
    corpus = folder / "demo" / "train"
    settings = {
        "logging__trackers": "wandb,trackio",
        "data__num_workers": 1,
        "data__cache_dir": f"cache?token={SECRET}",
    }
    return arguments(corpus, folder / name, **(settings | changes))


def wandb_records(run_dir: Path) -> list[list[dict[str, Any]]]:
    """Of each start of a run, oldest first, by W&B's own reader."""
    reader = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    outputs = [
        subprocess.run([*reader, str(file)], capture_output=True, text=True, check=True).stdout for file in files
    ]
    return [[json.loads(line) for line in output.splitlines()] for output in outputs]


def wandb_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def exit_status(records: list[dict[str, Any]]) -> int | None:
    found = [record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"]
    return found[0] if found else None


def trackio_rows(folder: Path, name: str, *, project: str = "unimo_ds") -> list[tuple[int, dict[str, Any]]]:
    file = folder / "trackio" / f"{project}.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        query = "select step, metrics from metrics where run_name like ? order by id"
        return [(step, json.loads(text)) for step, text in database.execute(query, (f"{name}-%",))]


def numbers(run_dir: Path) -> dict[int, dict[str, float]]:
    """What metrics.jsonl has of each step, the lines of a step joined."""
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        if "event" not in line:
            values = {name: value for name, value in line.items() if name not in ("step", "time") and value is not None}
            found.setdefault(line["step"], {}).update(values)
    return found


def last_of_each_step(rows: list[tuple[int, dict[str, Any]]]) -> dict[int, dict[str, float]]:
    """The same of a tracker's rows, without its own numbers and the sizes of pictures."""
    found: dict[int, dict[str, float]] = {}
    for step, values in rows:
        kept = {
            name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        kept = {
            name: value for name, value in kept.items() if name != "step" and not name.startswith(("_", "retrieved/"))
        }
        found.setdefault(step, {}).update(kept)
    return found


def wait_for_more(run_dir: Path, *, rows: int, family: subprocess.Popen[str]) -> None:
    """Until the trackers have seen the run go on for some steps, and a checkpoint exists."""
    deadline = time.monotonic() + 300
    database = run_dir.parent / "trackio"
    while family.poll() is None and time.monotonic() < deadline:
        if (database / "unimo_ds.db").is_file() and (run_dir / "checkpoints" / "latest").is_file():
            with contextlib.suppress(sqlite3.Error):
                if len(trackio_rows(run_dir.parent, run_dir.name)) >= rows:
                    return
        time.sleep(0.05)
    raise AssertionError(f"{steps_so_far(run_dir)} steps, and not enough in the trackers")


def test_a_run_that_is_killed_stopped_and_ended_is_one_run_in_its_trackers(folder: Path) -> None:
    """Numbers, pictures, statuses; nothing secret; no process of the libraries outlives a rank."""
    run_dir, endless = folder / "run", {"schedule__total_steps": 100_000, "schedule__warmup_steps": 2}
    with started([*torchrun(2), str(TRAIN), *flags(folder, "run", **endless)]) as family:
        wait_for_more(run_dir, rows=30, family=family)
        of_rank = processes_of_rank(family.pid, 0)
        assert any(b"wandb-core" in Path(f"/proc/{one}/cmdline").read_bytes() for one in of_rank)
        os.kill(min(of_rank), signal.SIGKILL)
        family.wait(60)
        deadline = time.monotonic() + 20
        while any(map(is_running, of_rank)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, of_rank))
    killed_from = int(checkpoint_folder.named(run_dir / "checkpoints" / "latest").removeprefix("step-"))

    rows = len(trackio_rows(folder, "run"))
    with started([*torchrun(2), str(TRAIN), *flags(folder, "run", **endless)]) as family:
        wait_for_more(run_dir, rows=rows + 20, family=family)
        for process in processes_of_rank(family.pid, 0):  # as Slurm does, the library's process included
            os.kill(process, signal.SIGUSR1)
        output, _ = family.communicate(timeout=120)
    assert "exitcode  : 75" in output, output[-4000:]
    assert "warning" not in output.lower().replace("[warning]", ""), output[-4000:]
    stopped_at = int(checkpoint_folder.named(run_dir / "checkpoints" / "latest").removeprefix("step-"))

    total = stopped_at + 6
    end = {
        "schedule__total_steps": total,
        "evaluation__every_steps": 3,
        "evaluation__num_pairs": 8,
        "data__held_out_path": folder / "demo" / "held_out",
    }
    launch(TRAIN, flags(folder, "run", **end), processes=2)

    starts = wandb_records(run_dir)
    assert [exit_status(records) for records in starts] == [None, 75, 0]
    assert [any(record["type"] == "preempting" for record in records) for records in starts] == [False, True, False]
    runs = [next(record["run"] for record in records if record["type"] == "run") for records in starts]
    assert {run["run_id"] for run in runs} == {(run_dir / "tracker_id").read_text().strip()}
    assert {run["display_name"] for run in runs} == {"run"}
    assert runs[-1]["config"]["update"]["schedule"]["total_steps"] == total
    metrics = [record["metric"] for records in starts for record in records if record["type"] == "metric"]
    assert any(one.get("glob_name") == "*" and one.get("step_metric") == "step" for one in metrics)

    expected = numbers(run_dir)
    assert list(expected) == list(range(1, total + 1))
    of_wandb = [(row["step"], row) for records in starts for row in wandb_rows(records)]
    of_trackio = trackio_rows(folder, "run")
    for rows_of in (of_wandb, of_trackio):
        last = last_of_each_step(rows_of)
        again = {step: values for step, values in expected.items() if step > killed_from}
        assert {step: values for step, values in last.items() if step > killed_from} == again
        # wandb-core loses what it has not written when its rank is killed; what it has is right.
        assert all(expected[step] == values for step, values in last.items() if step <= killed_from)
        assert len(rows_of) > len({step for step, _ in rows_of}), "steps after the checkpoint are there twice"
    assert any(name.startswith("held_out/") for name in expected[total])

    pictures = [values for _, values in of_trackio if "retrieved/0" in values]
    assert pictures
    assert pictures[0]["retrieved/0"]["_type"] == "trackio.image"
    assert list((folder / "trackio" / "media").rglob("*.png"))
    assert list(run_dir.glob("wandb/*/files/media/images/retrieved/0_*.png"))
    for file in [*(folder / "trackio").rglob("*"), *(run_dir / "wandb").rglob("*")]:
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_a_run_that_fails_says_so(folder: Path) -> None:
    bad = flags(folder, "bad", engine__max_skipped_steps=3)
    with started([*torchrun(2), str(SPOILING), "nan=4,5,6,7", *bad]) as family:
        output, _ = family.communicate(timeout=300)
    assert "exitcode  : 2" in output, output[-4000:]
    (records,) = wandb_records(folder / "bad")
    assert exit_status(records) == 2
    assert [row["step"] for row in wandb_rows(records)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_service_that_is_down_is_one_warning_and_the_run_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"  # closed by the time it is asked
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    output = launch(TRAIN, flags(folder, "down", logging__trackers="wandb"), processes=2)
    assert output.count("warning: ") == 1, output[-4000:]
    assert "warning: wandb is not reached (Failed to get resume status" in output
    (records,) = wandb_records(folder / "down")
    assert last_of_each_step([(row["step"], row) for row in wandb_rows(records)]) == numbers(folder / "down")


def test_no_key_is_one_warning_even_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library would ask for one, and wait."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    terminal, ours = os.openpty()
    command = [sys.executable, str(TRAIN), *flags(folder, "keyless", logging__trackers="wandb")]
    process = subprocess.Popen(command, stdin=ours, stdout=ours, stderr=ours, start_new_session=True)
    os.close(ours)
    output = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(terminal, 65536):
            output += part
    os.close(terminal)
    assert process.wait(60) == 0, output[-3000:]
    assert output.count(b"warning: ") == 1, output[-3000:]
    assert b"warning: wandb failed: UsageError: No API key configured" in output


SEEDS = """
import sys, time
from pathlib import Path
from unimo_ds.engine import trackers
from unimo_ds.engine.trackers import PatientTracker, TrackedRun, _module

for seed in "01":
    folder = Path(sys.argv[1]) / seed
    folder.mkdir()
    run = TrackedRun(seed, f"seed-{seed}", "finetune", "seeds", folder, {"seed": int(seed)}, print)
    told = tuple(PatientTracker(name, _module(name), run) for name in ("wandb", "trackio"))
    for tracker in told:
        tracker.log(1, {"loss": float(seed)})
    trackers.finish(told, 0)
"""


def test_the_seeds_of_a_fine_tuning_are_runs_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SEEDS, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stdout
    for seed in "01":
        (records,) = wandb_records(tmp_path / seed)
        assert exit_status(records) == 0
        assert [(row["step"], row["loss"]) for row in wandb_rows(records)] == [(1, float(seed))]
        assert trackio_rows(folder, f"seed-{seed}", project="seeds") == [(1, {"loss": float(seed)})]


FULL = """
import os, sys, time
from pathlib import Path
from tests.engine.disks import fill
from unimo_ds.engine import trackers
from unimo_ds.engine.trackers import PatientTracker, TrackedRun, _module

disk = Path(sys.argv[1])
run = TrackedRun("full", "full", "g", "full", disk, {}, print)
told = tuple(PatientTracker(name, _module(name), run) for name in ("wandb", "trackio"))
for tracker in told:
    tracker.log(0, {"loss": 1.0})
while not (list(disk.glob("wandb/*/*.wandb")) and list((disk / "trackio").glob("*.db"))):
    time.sleep(0.1)
fill(disk)
for step in range(1, 1000):
    for tracker in told:
        tracker.log(step, {f"loss/{number}": step + number / 7 for number in range(30)})
trackers.finish(told, 0)
sys.exit(7)
"""


def test_a_full_disk_ends_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(small_disk / "trackio"))
    done = subprocess.run([sys.executable, "-c", FULL, str(small_disk)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr[-3000:]
    assert "trackio failed to flush" in done.stderr, "the disk was full indeed"


FROZEN = """
import os, signal, sys, time
from pathlib import Path
from unimo_ds.engine.trackers import _module, wandb
from unimo_ds.engine.trackers.patient import PatientTracker
from unimo_ds.engine.trackers.protocol import TrackedRun

folder = Path(sys.argv[1])
tracker = PatientTracker("wandb", _module("wandb"), TrackedRun("frozen", "n", "g", "p", folder, {}, print))
tracker.log(1, {"loss": 1.0})
while not list(folder.glob("wandb/*/files/requirements.txt")):
    time.sleep(0.1)
(service,) = wandb._children()
os.kill(service, signal.SIGSTOP)
tracker.finish(0)
tracker.leave(time.monotonic() + 1)
print("left")
sys.exit(7)
"""


def test_a_library_process_that_is_frozen_does_not_keep_a_rank(folder: Path, tmp_path: Path) -> None:
    """Its exit hook would wait for it for ever."""
    done = subprocess.run([sys.executable, "-c", FROZEN, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr[-3000:]
    assert "warning: wandb has not taken all in time" in done.stdout
