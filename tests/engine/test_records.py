"""metrics.jsonl read back: what is read of a file that a crash has spoilt, and what a resumed run keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimo_ds.engine.log import cut_after
from unimo_ds.utils.records import DAMAGED, METRICS_FILE, read

STEP = '{"step": 3, "time": 1.5, "loss/total": 2.0}\n'
EVALUATION = '{"step": 3, "time": 2.5, "held_out/loss/total": null}\n'
SAVED = '{"step": 3, "event": "saved", "stall_seconds": 0.5}\n'


def test_kinds_of_records(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    assert list(read(path)) == []
    path.write_text(STEP + EVALUATION + SAVED + STEP[:-1])
    found = list(read(path))
    assert [(one.step, one.event) for one in found] == [(3, ""), (3, ""), (3, "saved")], "one is still being written"
    assert found[2].values["stall_seconds"] == 0.5


@pytest.mark.parametrize(
    "line",
    [
        *(b"{\n", b"\n", b"\0\0\0\n", b"\xff\xfe\n", b"[]\n", b"3\n", b"[" * 100_000 + b"\n"),
        *(b'{"time": 1.0}\n', b'{"step": "3", "time": 1.0}\n', b'{"step": 3.5, "time": 1.0}\n'),
        *(b'{"step": 3}\n', b'{"step": 3, "time": NaN}\n', b'{"step": 3, "event": 7}\n'),
    ],
)
def test_a_line_that_is_no_record_is_told_and_not_kept(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(STEP.encode() + line + SAVED.encode())
    assert [(one.step, one.event) for one in read(path)] == [(3, ""), (3, DAMAGED), (3, "saved")]
    cut_after(path, 9, last_measured=9)
    assert path.read_text() == STEP + SAVED


def test_what_was_logged_after_a_step_is_cut(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    cut_after(path, 1, last_measured=1)
    assert not path.exists()
    path.write_text(STEP + EVALUATION + SAVED + STEP.replace("3", "4"))
    cut_after(path, 3, last_measured=2)
    assert path.read_text() == STEP + SAVED
    before = path.stat().st_ino
    cut_after(path, 3, last_measured=2)
    assert path.stat().st_ino == before, "a file of which all stays is left alone"
