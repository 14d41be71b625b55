"""Only the steps that were asked for are recorded, in one file, and a stop does not lose them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unimo_ds.engine.trace import Tracer


def take(tracer: Tracer, step: int) -> None:
    with tracer.around(step):
        torch.ones(step, 3) @ torch.ones(3, 7)


def num_products(path: Path) -> int:
    return sum(event.get("name") == "aten::mm" for event in json.loads(path.read_text())["traceEvents"])


def test_the_steps_asked_for_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracer = Tracer(tmp_path / "traces", 2, 3)
    for step in range(1, 6):
        take(tracer, step)
    tracer.close()
    (path,) = (tmp_path / "traces").iterdir()
    assert path.name == "steps-2-3.json"
    assert num_products(path) == 2
    assert capsys.readouterr().out.count(str(path)) == 1


def test_a_stop_writes_what_there_is_and_none_is_none(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "stopped", 2, 100)
    for step in (5, 6):
        take(tracer, step)
    tracer.close()
    tracer.close()
    assert num_products(tmp_path / "stopped" / "steps-5-6.json") == 2
    tracer = Tracer(tmp_path / "none", 0, 0)
    take(tracer, 1)
    tracer.close()
    assert not (tmp_path / "none").exists()


def test_a_place_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    tracer = Tracer(tmp_path / "file" / "traces", 1, 1)
    take(tracer, 1)
    assert capsys.readouterr().out.startswith("warning: cannot write")


def test_what_goes_wrong_in_the_first_step_is_told_and_traced(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, 1, 3)
    with pytest.raises(ZeroDivisionError), tracer.around(1):
        raise ZeroDivisionError
    tracer.close()
    assert (tmp_path / "steps-1-1.json").is_file()
