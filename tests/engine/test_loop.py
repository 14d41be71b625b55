"""What the loop does where something fails beside a step, on one process."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.engine import checkpoint, ds_config, rollback
from unimo_ds.engine.launch import stop_processes
from unimo_ds.engine.loop import Loop
from unimo_ds.engine.metrics import Report
from unimo_ds.engine.setup import Engine, make_engine
from unimo_ds.engine.signals import HANDLED
from unimo_ds.engine.state import Progress
from unimo_ds.utils.errors import UserError

CONFIG = RunConfig(recipe="test")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    torch.manual_seed(0)
    made = make_engine(nn.Linear(5, 3), CONFIG, ds_config.load("zero0_fp32", CONFIG, 1))
    yield made
    made.close()
    stop_processes()


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fail() -> Report:
    raise UserError("no such data")


def make_loop(engine: Engine, run_dir: Path) -> Loop:
    config = dataclasses.replace(CONFIG, run_dir=str(run_dir))
    return Loop(engine, None, config, make_batches=lambda first, stop: [], evaluate=fail, best_metric="any")


def open_below(folder: Path) -> list[str]:
    files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    return [file for file in files if Path(file).is_relative_to(folder)]


def test_a_first_evaluation_that_fails_leaves_no_file_open(engine: Engine, tmp_path: Path) -> None:
    loop = make_loop(engine, tmp_path)
    assert open_below(tmp_path)
    with pytest.raises(UserError, match="no such data"):
        loop.run()
    assert not open_below(tmp_path)


def test_a_rollback_that_cannot_be_put_on_record_is_told_by_all_ranks(engine: Engine, tmp_path: Path) -> None:
    checkpoint.save(engine, tmp_path, Progress(step=2), CONFIG)
    loop = make_loop(engine, tmp_path)
    loop.progress = Progress(step=5, spikes_in_a_row=3, first_spike=2)
    (tmp_path / rollback.FILE).write_text("[{]")
    with pytest.raises(UserError, match=r"3 steps up to step 5 had .* going back failed: .*is not JSON"):
        loop._roll_back()
