"""R10: a spike is seen at its step and its update skipped; one that does not end is rolled back, within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import started
from tests.distributed.test_train import SPOILING, arguments
from tests.runs import logged
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus
from unimo_ds.engine import checkpoint_folder, rollback
from unimo_ds.evaluation.held_out import BEST_METRIC
from unimo_ds.run_page import read_run, summary

TOTAL = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_demo_corpus(folder, num_pairs=80, num_images=20, num_texts=20, num_held_out=8)
    return folder


def train(spoilt: str, corpus: Path, run_dir: Path, **changes: object) -> tuple[int, str]:
    """One process; returns status and output."""
    settings = {
        "schedule__total_steps": TOTAL,
        "data__num_workers": 0,
        "spikes__warm_up_steps": 6,
        "spikes__most_in_a_row": 3,
        "spikes__ratio": 3.0,
    } | changes
    with started([sys.executable, str(SPOILING), spoilt, *arguments(corpus, run_dir, **settings)]) as process:
        output, _ = process.communicate(timeout=600)
    return process.returncode, output


def same_end(one: Path, other: Path) -> bool:
    last = Path(checkpoint_folder.FOLDER) / f"step-{TOTAL}"
    return all(
        (one / last / n).read_bytes() == (other / last / n).read_bytes() for n in checkpoint_folder.FILES.values()
    )


def notes(run_dir: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == kind]


def measured(run_dir: Path) -> list[int]:
    """Steps with a held-out measurement."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if BEST_METRIC in line]


def test_a_spike_without_end_is_left_behind_and_resuming_after_it_is_bit_equal(corpus: Path, tmp_path: Path) -> None:
    """The run that met the spike, the one that never read these batches, and the one stopped after it end with the same bits."""
    spiked, spared, stopped = tmp_path / "spiked", tmp_path / "spared", tmp_path / "stopped"
    status, output = train("spike=9,12,13,14", corpus, spiked)
    assert status == 0, output[-4000:]
    assert "going back; batches 12 to 14 are passed over from now on" in output
    assert f"resuming from {spiked}/checkpoints/step-10 at step 10" in output
    (single,) = notes(spiked, "spike")
    assert single["step"] == 10
    assert "no update" in single["text"]
    assert sorted(logged(spiked)) == [step for step in range(1, TOTAL + 1) if step not in (13, 14, 15)]
    (record,) = rollback.read(spiked)
    assert (record.first, record.stop, record.is_done) == (12, 15, True)
    assert [step for step, _ in record.samples] == [12, 13, 14]
    assert all(len(keys) == 1 and len(keys[0]) == 14 for _, keys in record.samples)
    assert len(notes(spiked, "rolled_back")) == 1

    spared.mkdir()
    rollback.begin(spared, rollback.Rollback(12, 15, "by hand", is_done=True))
    # Wall clocks that go wrong on the way change nothing but the times in the log.
    assert train("spike=9;clock=5", corpus, spared)[0] == 0
    assert 0 <= summary(read_run(spared))["training_share"] <= 1
    assert logged(spared) == logged(spiked)
    assert same_end(spared, spiked)

    status, output = train("spike=9,12,13,14;stop=17", corpus, stopped)
    assert status == 75, output[-4000:]
    (stop,) = notes(stopped, "stopped")
    assert (stop["step"], stop["exit_status"]) == (18, 75)
    assert train("spike=9,12,13,14", corpus, stopped)[0] == 0
    assert logged(stopped) == logged(spiked)
    assert same_end(stopped, spiked)


@pytest.mark.parametrize("checkpoint_steps", [5, 7])  # batch 20 is taken again after the rollback, or none
def test_a_run_whose_last_batches_are_passed_over_is_measured_at_its_end(
    corpus: Path, tmp_path: Path, checkpoint_steps: int
) -> None:
    settings = {
        "data__held_out_path": corpus / "held_out",
        "evaluation__every_steps": TOTAL,
        "evaluation__num_pairs": 8,
        "checkpoint__every_steps": checkpoint_steps,
    }
    spiked, stopped = tmp_path / "spiked", tmp_path / "stopped"
    status, output = train("spike=21,22,23", corpus, spiked, **settings)
    assert status == 0, output[-4000:]
    assert f"batches 21 to {TOTAL - 1} are passed over (rollbacks.json)" in output
    assert measured(spiked) == [0, TOTAL]
    assert "nothing to do" in train("spike=21,22,23", corpus, spiked, **settings)[1]
    assert measured(spiked) == [0, TOTAL]

    stopped.mkdir()
    rollback.begin(stopped, rollback.Rollback(21, TOTAL, "by hand", is_done=True))
    assert train("stop=20", corpus, stopped, **settings)[0] == 75
    assert measured(stopped) == [0]
    assert train("spike=21,22,23", corpus, stopped, **settings)[0] == 0
    assert measured(stopped) == [0, TOTAL]
    assert same_end(stopped, spiked)


def test_rollbacks_have_an_end_and_its_reason(corpus: Path, tmp_path: Path) -> None:
    every = ",".join(map(str, range(12, TOTAL)))
    status, output = train(f"spike={every}", corpus, tmp_path / "run", spikes__max_rollbacks=1)
    assert status == 2, output[-4000:]
    assert "error: 3 steps up to step 18 had a loss or gradient norm far above the usual, after 1 rollbacks" in output
    result = subprocess.run(
        [sys.executable, "-m", "unimo_ds", "inspect", str(tmp_path / "run"), "--html", str(tmp_path / "page.html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "batches 12 to 14 are passed over" in (tmp_path / "page.html").read_text()


def test_checkpoints_of_a_row_of_spikes_do_not_drive_out_the_one_from_before_it(corpus: Path, tmp_path: Path) -> None:
    """More of them are saved during the row than are kept."""
    status, output = train(
        "spike=12,13,14", corpus, tmp_path / "run", checkpoint__every_steps=1, checkpoint__keep_last=1
    )
    assert status == 0, output[-4000:]
    assert f"resuming from {tmp_path}/run/checkpoints/step-12 at step 12" in output
    assert checkpoint_folder.completed_steps(tmp_path / "run")[-1] == TOTAL
