"""Logs on a full disk are a warning at most, and none where the output lies on that disk too."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from tests.engine.disks import files_of_at_most
from unimo_ds.engine.patient_files import PatientLines

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
