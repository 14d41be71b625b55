"""What is logged, what resuming cuts off, and how not-a-number looks in either place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimo_ds.config import RunConfig
from unimo_ds.engine.metrics import MetricsWriter, progress_line


class FewEmbeddings:
    matrix = np.eye(3, dtype=np.float32)
    labels: tuple[str, ...] = ("image: a disc", "image: b", "text: a disc")


class SmallReport:
    metrics = {"held_out/retrieval/mean_recall": 0.25, "count/contrastive": 4.0}  # noqa: RUF012
    pictures = (np.zeros((4, 5, 3), dtype=np.uint8),)
    embeddings = FewEmbeddings()


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_step_is_logged_twice_after_resuming(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, start_step=0)
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss/total": float(step)})
    writer.close()
    writer = MetricsWriter(tmp_path, start_step=2)
    for step in (3, 4):
        writer.write(step, {"loss/total": 10.0 + step})
    writer.close()
    lines = read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss/total"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0)]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss/total")] == [(1, 1), (2, 2), (3, 13), (4, 14)]


def test_an_evaluation_that_is_made_again_takes_the_place_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was due after a request to stop, whose start was killed before it saved that it is done; and a later one."""
    writer = MetricsWriter(tmp_path, start_step=-1)
    for step in (1, 2, 3):
        writer.write(step, {"loss/total": 0.5})
        writer.write_note(step, "saved", {})
        writer.write_report(step, SmallReport())
    writer.close()
    writer = MetricsWriter(tmp_path, start_step=2, measures_again=True)
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 1, 1, 2, 2]
    writer.write_report(2, SmallReport())
    writer.close()
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "held_out/retrieval/mean_recall" in line] == [1, 2]
    folders = sorted(path.name for path in (tmp_path / "tensorboard").iterdir() if path.is_dir())
    assert folders == ["00001", "00002"]
    assert "warning" not in capsys.readouterr().out


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """Raw in TensorBoard; null in the file, because JSON has no NaN."""
    writer = MetricsWriter(tmp_path, start_step=0)
    writer.write(1, {"loss/total": math.nan, "gradient_norm": math.inf})
    writer.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read(tmp_path / "metrics.jsonl")[0]["loss/total"] is None
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert math.isnan(board.Scalars("loss/total")[0].value)
    assert math.isinf(board.Scalars("gradient_norm")[0].value)


def test_report_and_settings_reach_tensorboard(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, start_step=0)
    writer.write_report(5, SmallReport())
    writer.write_settings(RunConfig(recipe="test"))
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["images"] == ["retrieved/0"]
    assert "final/held_out/retrieval/mean_recall" in board.Tags()["scalars"]
    assert "final/count/contrastive" not in board.Tags()["scalars"], "only what a run is judged by"
    (metadata,) = tmp_path.rglob("metadata.tsv")
    assert metadata.read_text().splitlines()[:2] == ["label\tkind", "image: a disc\timage"]


def test_no_curve_of_what_a_step_had_none_of(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, start_step=0)
    absent = {"accuracy/hard_negative_word": math.nan, "loss/contrastive": math.nan, "count/contrastive": 0.0}
    writer.write(1, {"loss/total": math.nan, **absent})
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"loss/total", "count/contrastive"}
    assert read(tmp_path / "metrics.jsonl")[0]["accuracy/hard_negative_word"] is None


def test_a_fresh_start_keeps_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        writer = MetricsWriter(tmp_path, start_step=-1)
        writer.write(0, {"held_out/loss/total": 1.0})
        writer.close()
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [0]


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
        writer = MetricsWriter(tmp_path, start_step=2 - len(steps))
        for step in steps:
            writer.write(step, {"loss/total": 0.5})
        writer.write_settings(RunConfig(recipe="test"))
        writer.close()
        return len(list((tmp_path / "tensorboard").glob("events*")))

    assert [event_files(1, 2), event_files(), event_files()] == [2, 3, 4]
