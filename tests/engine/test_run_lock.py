"""One trainer in a run directory: whoever comes second is refused with the first one's name."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine.test_run_directory import prepare
from unimo_ds.config import RunConfig
from unimo_ds.engine import run_lock
from unimo_ds.engine.checkpoint import Saver
from unimo_ds.engine.state import Progress
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError


def test_a_file_system_without_locks_is_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lustre that is mounted without `flock` has none."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    prepare(tmp_path, RunConfig(recipe="test"))
    assert "without locks (Function not implemented)" in capsys.readouterr().out


HOLDER = """if True:
    import sys
    from pathlib import Path
    from unimo_ds.engine import run_lock
    if holder := run_lock.lock(Path(sys.argv[1]), patience=0.0):
        sys.exit(holder)
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_earlier_start_of_the_same_slurm_job_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A silent node may still run the tasks of a job that was requeued elsewhere; another job's are not waited for."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with hold(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        with pytest.raises(UserError, match=rf"in use by process {process.pid} on \S+ of Slurm job 17;"):
            prepare(tmp_path, RunConfig(recipe="test"))
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        threading.Timer(0.5, process.kill).start()
        began = time.monotonic()
        prepare(tmp_path, RunConfig(recipe="test"))
        assert time.monotonic() - began > 0.4
    assert capsys.readouterr().out.count("waiting for it for up to 16 minutes") == 1


def test_a_directory_that_is_deleted_stays_locked_until_another_trainer_begins_there(tmp_path: Path) -> None:
    """By whoever comes first: the trainer whose directory it was, at its next checkpoint, or a new one."""
    run_dir = tmp_path / "run"
    prepare(run_dir, RunConfig(recipe="test"))
    assert run_lock.hold(run_dir) == ""
    shutil.rmtree(run_dir)
    assert run_lock.hold(run_dir) == ""
    with hold(run_dir) as refused:
        assert f"process {os.getpid()} " in refused.communicate()[1]
    shutil.rmtree(run_dir)
    run_dir.mkdir()
    with hold(run_dir) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert f"process {process.pid} " in run_lock.hold(run_dir)
        process.communicate("")
    assert f"process {process.pid} " in run_lock.hold(run_dir), "what it left is not ours either"
    saver = Saver(SimpleNamespace(communicator=SingleProcess()), run_dir, RunConfig(recipe="test"))
    with pytest.raises(UserError, match=rf"was deleted, and process {process.pid} on \S+ trains there now"):
        saver.save(Progress(step=1), wait=True)
    assert not (run_dir / "checkpoints").exists()


def test_a_directory_in_use_is_refused_with_its_holder(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {process.pid} "):
            prepare(tmp_path, RunConfig(recipe="test"))
        process.communicate("")
    prepare(tmp_path, RunConfig(recipe="test"))
