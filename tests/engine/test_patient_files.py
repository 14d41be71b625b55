"""Logs on a full disk are a warning at most, and none where the output lies on that disk too."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.disks import files_of_at_most
from unimo_ds.engine.patient_files import PatientBoard, PatientLines

FULL = Path("/dev/full")


def write_two_lines() -> None:
    lines = PatientLines(FULL)
    lines.write("{}")
    lines.write("{}")
    lines.close()


def test_lines_that_no_disk_takes_end_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    write_two_lines()
    assert capsys.readouterr().out.count("its lines wait, training goes on") == 1


def test_lines_that_wait_are_written_at_the_end_where_there_is_room_by_then(tmp_path: Path) -> None:
    lines = PatientLines(tmp_path / "lines")
    with files_of_at_most(4):
        lines.write("a line")
    lines.close()
    assert (tmp_path / "lines").read_text() == "a line\n"


def test_neither_does_a_warning_that_none_takes() -> None:
    with FULL.open("wb", buffering=0) as full, contextlib.redirect_stdout(io.TextIOWrapper(full, write_through=True)):
        write_two_lines()


@pytest.mark.parametrize("clocks", [(0.0, 0.2, 0.4), (7200.0, 3600.0, 0.0)])
def test_starts_are_read_in_their_order_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clocks: tuple[float, ...]
) -> None:
    """Within a second numbers of processes tell them apart, and those begin anew: a later start may have a lower one."""
    now = math.floor(time.time())
    for clock, process, first in zip(clocks, (32735, 309, 12), (1, 3, 4), strict=True):
        monkeypatch.setattr(time, "time", lambda clock=clock: now + clock)
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        board = PatientBoard(tmp_path, purge_step=first)
        for step in range(first, first + 3):
            board.add("scalar", "loss", float(process), step)
        board.close()
    found = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    found.Reload()
    shown = [(event.step, event.value) for event in found.Scalars("loss")]
    assert shown == [(1, 32735.0), (2, 32735.0), (3, 309.0), (4, 12.0), (5, 12.0), (6, 12.0)]
