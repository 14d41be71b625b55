"""What is logged, what resuming cuts off, and how not-a-number looks in either place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimo_ds.config import RunConfig
from unimo_ds.engine.log import RunLog, make_log
from unimo_ds.engine.metrics import progress_line


class FewEmbeddings:
    matrix = np.eye(3, dtype=np.float32)
    labels: tuple[str, ...] = ("image: a disc", "image: b", "text: a disc")


class SmallReport:
    metrics = {"held_out/retrieval/mean_recall": 0.25, "count/contrastive": 4.0}  # noqa: RUF012
    pictures = (np.zeros((4, 5, 3), dtype=np.uint8),)
    embeddings = FewEmbeddings()


def log_in(folder: Path, step: int, **options: bool) -> RunLog:
    """Of a start that goes on after `step`."""
    log = RunLog(RunConfig(recipe="test", run_dir=str(folder)))
    log.resume(step, **options)
    return log


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_step_is_logged_twice_after_resuming(tmp_path: Path) -> None:
    log = log_in(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.write(step, {"loss/total": float(step)})
    log.finish(0)
    log = log_in(tmp_path, 2)
    for step in (3, 4):
        log.write(step, {"loss/total": 10.0 + step})
    log.finish(0)
    lines = read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss/total"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0)]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/total")] == [(1, 1), (2, 2), (3, 13), (4, 14)]


def test_an_evaluation_that_is_made_again_takes_the_place_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was due after a request to stop, whose start was killed before it saved that it is done; and a later one."""
    log = log_in(tmp_path, -1)
    for step in (1, 2, 3):
        log.write(step, {"loss/total": 0.5})
        log.note(step, "saved")
        log.write_report(step, SmallReport())
    log.finish(0)
    log = log_in(tmp_path, 2, measures_again=True)
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 1, 1, 2, 2]
    log.write_report(2, SmallReport())
    log.finish(0)
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "held_out/retrieval/mean_recall" in line] == [1, 2]
    folders = sorted(path.name for path in (tmp_path / "tensorboard").iterdir() if path.is_dir())
    assert folders == ["00001", "00002"]
    assert "warning" not in capsys.readouterr().out


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """Raw in TensorBoard; null in the file, because JSON has no NaN."""
    log = log_in(tmp_path, 0)
    log.write(1, {"loss/total": math.nan, "gradient_norm": math.inf})
    log.finish(0)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read(tmp_path / "metrics.jsonl")[0]["loss/total"] is None
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert math.isnan(board.Scalars("loss/total")[0].value)
    assert math.isinf(board.Scalars("gradient_norm")[0].value)


def test_report_and_settings_reach_tensorboard(tmp_path: Path) -> None:
    log = log_in(tmp_path, 0)
    log.write_report(5, SmallReport())
    log.write_settings()
    log.finish(0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["images"] == ["retrieved/0"]
    assert "final/held_out/retrieval/mean_recall" in board.Tags()["scalars"]
    assert "final/count/contrastive" not in board.Tags()["scalars"], "only what a run is judged by"
    (metadata,) = tmp_path.rglob("metadata.tsv")
    assert metadata.read_text().splitlines()[:2] == ["label\tkind", "image: a disc\timage"]


def test_no_curve_of_what_a_step_had_none_of(tmp_path: Path) -> None:
    log = log_in(tmp_path, 0)
    absent = {"accuracy/hard_negative_word": math.nan, "loss/contrastive": math.nan, "count/contrastive": 0.0}
    log.write(1, {"loss/total": math.nan, **absent})
    log.finish(0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"loss/total", "count/contrastive"}
    assert read(tmp_path / "metrics.jsonl")[0]["accuracy/hard_negative_word"] is None


def test_a_fresh_start_keeps_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        log = log_in(tmp_path, -1)
        log.write(0, {"held_out/loss/total": 1.0})
        log.finish(0)
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [0]


def test_other_ranks_keep_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same calls as on rank 0."""
    log = make_log(RunConfig(recipe="test", run_dir=str(tmp_path / "run")), rank=1)
    log.say("hello")
    log.resume(-1, measures_again=True)
    with log.traced(1):
        log.write(1, {"loss/total": 0.5})
    log.note(1, "saved", stall_seconds=0.5)
    log.write_report(1, SmallReport())
    log.finish(None)
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


def test_progress_line() -> None:
    values = {
        "loss/total": 2.5,
        "loss/contrastive": math.nan,
        "gradient_norm": 1.0,
        "speed/tokens_per_second": 12345.6,
        "speed/data_wait_share": 0.04,
    }
    line = progress_line(10, 100, values, seconds_per_step=41.0)
    assert line == "step 10/100  total 2.500  norm 1.00  12,346 tokens/s  data wait 4%  left 1:01:30"


def test_a_start_that_finds_nothing_to_do_adds_no_settings(tmp_path: Path) -> None:
    def event_files(*steps: int) -> int:
        log = log_in(tmp_path, 2 - len(steps))
        for step in steps:
            log.write(step, {"loss/total": 0.5})
        log.write_settings()
        log.finish(0)
        return len(list((tmp_path / "tensorboard").glob("events*")))

    assert [event_files(1, 2), event_files(), event_files()] == [2, 3, 4]
