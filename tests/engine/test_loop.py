"""What the loop does where something fails beside a step, on one process, with an engine that takes no step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.engine.test_replicas import WithOther
from tests.engine.test_rollback import save
from unimo_ds.config import RunConfig
from unimo_ds.data.schema import StepBatch
from unimo_ds.engine import checkpoint_folder, rollback
from unimo_ds.engine.loop import Loop
from unimo_ds.engine.metrics import Report
from unimo_ds.engine.signals import HANDLED
from unimo_ds.engine.state import Progress
from unimo_ds.engine.step import StepMetrics
from unimo_ds.engine.stragglers import Stopwatch
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fail() -> Report:
    raise UserError("no such data")


def take_no_step(batch: StepBatch, **_: object) -> StepMetrics:
    raise AssertionError("there are no batches")


def make_loop(run_dir: Path) -> Loop:
    engine = SimpleNamespace(
        communicator=SingleProcess(), ds_config={}, device=CPU, forward_time=Stopwatch(CPU), module=nn.Linear(1, 1)
    )
    config = RunConfig(recipe="test", run_dir=str(run_dir))
    return Loop(
        engine, config, take_step=take_no_step, make_batches=lambda first, stop: [], evaluate=fail, best_metric="any"
    )


def open_below(folder: Path) -> list[str]:
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [file for file in files if Path(file).is_relative_to(folder)]


def test_a_first_evaluation_that_fails_leaves_no_file_open(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    assert open_below(tmp_path)
    with pytest.raises(UserError, match="no such data"):
        loop.run()
    assert not open_below(tmp_path)


def test_a_rollback_that_cannot_be_put_on_record_is_told_by_all_ranks(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    loop.progress = Progress(step=5, spikes_in_a_row=3, first_spike=2)
    save(tmp_path / checkpoint_folder.FOLDER, 2, best=2)
    (tmp_path / rollback.FILE).write_text("[{]")
    with pytest.raises(UserError, match=r"3 steps up to step 5 had .* going back failed: .*is not JSON"):
        loop._roll_back()


def test_a_checkpoint_of_the_row_itself_is_no_way_back(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    loop.progress = Progress(step=5, spikes_in_a_row=3, first_spike=2)
    save(tmp_path / checkpoint_folder.FOLDER, 3, best=3)
    with pytest.raises(UserError, match=r"3 steps up to step 5 had .* there is no checkpoint from before them"):
        loop._roll_back()
    assert checkpoint_folder.completed_steps(tmp_path) == [3]
    assert not rollback.read(tmp_path)


def test_weights_that_drifted_apart_are_not_saved(tmp_path: Path) -> None:
    loop = make_loop(tmp_path)
    loop.engine.zero_stage, loop.engine.communicator = 1, WithOther(nn.Linear(1, 1))
    with pytest.raises(UserError, match="the weights of rank 1 are no longer those of rank 0"):
        loop._save(must_succeed=True)
    assert not checkpoint_folder.completed_steps(tmp_path)
