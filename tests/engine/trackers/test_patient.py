"""Whatever a tracker's library does, training is not held up by it, and its user reads one sentence."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from tests.engine.test_log import SmallReport
from unimo_ds.config import LoggingConfig, RunConfig, from_dict, to_dict
from unimo_ds.engine import trackers
from unimo_ds.engine.log import RunLog
from unimo_ds.engine.run_directory import differing_keys
from unimo_ds.engine.trackers import patient as patient_file
from unimo_ds.engine.trackers.patient import PatientTracker
from unimo_ds.engine.trackers.protocol import TrackedRun
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.errors import UserError

ROOT = Path(__file__).parents[3]
NAMES = get_args(get_args(get_type_hints(LoggingConfig)["trackers"])[0])


class Library:
    """A tracker that keeps what it gets, after `behaves` has had its way."""

    REQUIREMENT = "library==1"

    def __init__(self, behaves: Callable[[str], None] = lambda call: None) -> None:
        self.behaves, self.calls, self.abandoned = behaves, [], threading.Event()

    def open_run(self, run: TrackedRun) -> Library:
        self.behaves("open")
        return self

    def abandon(self) -> None:
        self.abandoned.set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.behaves("log")
        self.calls.append((step, dict(values)))

    def show(self, step: int, pictures: Sequence[np.ndarray]) -> None:
        self.calls.append((step, len(pictures)))

    def finish(self, status: int) -> None:
        self.calls.append(("finish", status))


def patient(library: Library, said: list[str]) -> PatientTracker:
    run = TrackedRun("id", "name", "group", "project", Path("run"), {}, said.append)
    return PatientTracker("library", library, run)


def test_a_tracker_gets_what_tensorboard_gets_and_the_status(tmp_path: Path) -> None:
    library, said = Library(), []
    log = RunLog(RunConfig(recipe="test", run_dir=str(tmp_path)))
    log._trackers = (patient(library, said),)
    log.resume(-1)
    log.write(1, {"loss/total": 2.0, "loss/contrastive": float("nan"), "count/contrastive": 0.0})
    log.write_report(1, SmallReport())
    log.resume(0)  # after a rollback, in the same process
    log.write(1, {"loss/total": 3.0})
    log.finish(75)
    assert library.calls == [
        (1, {"loss/total": 2.0, "count/contrastive": 0.0}),
        (1, SmallReport.metrics),
        (1, 1),
        (1, {"loss/total": 3.0}),
        ("finish", 75),
    ]
    assert not said


@pytest.mark.parametrize(("error", "status"), [(UserError("bad"), 2), (KeyboardInterrupt(), 130), (RuntimeError(), 1)])
def test_an_exception_on_its_way_out_is_a_status(error: BaseException, status: int) -> None:
    library = Library()
    told = (patient(library, []),)
    told[0].log(1, {})
    try:
        raise error
    except type(error):
        trackers.finish(told, None)
    assert library.calls[-1] == ("finish", status)


@pytest.mark.parametrize("failing", ["open", "log"])
def test_a_library_that_raises_is_one_warning(failing: str) -> None:
    def behaves(call: str) -> None:
        if call == failing:
            raise ValueError("the service is down\nwith a second line")

    library, said = Library(behaves), []
    told = (patient(library, said),)
    for step in range(3):
        told[0].log(step, {})
    trackers.finish(told, 0)
    assert said == [
        "warning: library failed: ValueError: the service is down; training goes on, and metrics.jsonl has every step"
    ]
    assert library.calls == ([] if failing == "open" else [("finish", 0)])


@pytest.mark.parametrize("hanging", ["open", "log"])
def test_a_library_that_hangs_holds_nothing_up(hanging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps beyond those that may wait are dropped; at the end it is let go of, which may free it."""
    monkeypatch.setattr(trackers, "_SECONDS", 0.2)
    monkeypatch.setattr(patient_file, "_SECONDS_TO_LET_GO", 0.2)
    library, said = Library(lambda call: call == hanging and library.abandoned.wait(60)), []
    told = (patient(library, said),)
    start = time.monotonic()
    for step in range(6000):
        told[0].log(step, {})
    assert time.monotonic() - start < 5
    assert "does not keep up" in said[0]
    trackers.finish(told, 0)
    assert library.abandoned.is_set()
    assert time.monotonic() - start < 10
    assert len(said) == 1


def test_how_the_run_ended_reaches_a_library_that_missed_steps() -> None:
    """Otherwise a run that is done would be shown as one that crashed, and its thread would never end."""
    is_back = threading.Event()
    library, said = Library(lambda call: is_back.wait(60)), []
    told = (patient(library, said),)
    for step in range(6000):
        told[0].log(step, {})
    told[0].finish(75)
    is_back.set()
    told[0].leave(time.monotonic() + 30)
    assert "misses steps" in said[0]
    assert library.calls[-1] == ("finish", 75)
    assert not told[0]._thread.is_alive()


def test_a_run_that_tells_nothing_opens_none() -> None:
    library = Library()
    trackers.finish((patient(library, []),), 0)
    assert library.calls == []


def test_the_id_is_kept_and_secrets_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig(recipe="demo", run_dir=".")
    config = apply_overrides(config, ["logging.trackers=wandb,wandb", "data.path=s3://me:hidden@host/x"])
    runs = [trackers.make_trackers(config, print)[0]._run for _ in range(2)]
    assert len(trackers.make_trackers(config, print)) == 1
    assert runs[0].id == runs[1].id == (tmp_path / "tracker_id").read_text().strip()
    assert runs[0].name == tmp_path.name
    assert runs[0].config["model"]["num_layers"] == 12
    assert "hidden@" not in str(runs[0])


def test_trackers_are_free_to_change_in_a_continued_run() -> None:
    config = RunConfig(recipe="demo")
    changed = apply_overrides(config, ["logging.trackers=trackio,wandb", "logging.project=mine"])
    assert changed.logging.trackers == ("trackio", "wandb")
    assert from_dict(RunConfig, to_dict(changed)) == changed
    assert differing_keys(to_dict(config), to_dict(changed)) == []
    assert apply_overrides(changed, ["logging.trackers=none"]).logging.trackers == ()
    with pytest.raises(UserError, match="'wandbb' is not one of wandb, trackio"):
        apply_overrides(config, ["logging.trackers=wandbb"])


@pytest.mark.parametrize("name", NAMES)
def test_requirements_are_the_extras(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras[name] == [trackers._module(name).REQUIREMENT]
    assert extras[name][0] in (ROOT / "requirements-trackers.txt").read_text().splitlines()


def test_a_missing_library_is_one_sentence_before_anything_is_made(tmp_path: Path) -> None:
    try:
        importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        pytest.skip("wandb is installed here")
    command = [sys.executable, str(ROOT / "unimo_ds/train.py"), "--set", "logging.trackers=wandb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "error: logging.trackers=wandb needs wandb, which is not installed; `pip install wandb==" in done.stderr
    assert list(tmp_path.iterdir()) == []
