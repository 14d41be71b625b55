"""`unimo finetune retrieval` as a user runs it, both losses, stopped and resumed to the bit; and what it leaves to be read."""

from __future__ import annotations

import json
from pathlib import Path

from tests.distributed.launching import launch
from tests.finetune import small
from tests.finetune.test_run import MAIN, logged

SETTINGS = (
    "schedule.total_steps=4",
    "evaluation.every_steps=2",
    "logging.every_steps=1",
    "batch.global_samples=6",
    "batch.micro_batch_tokens=250",
    "optimizer.peak_learning_rate=1e-3",
    "finetune.retrieval.negative_images=2",
    "finetune.retrieval.negative_captions=1",
    "finetune.retrieval.hard_share=0.5",
)


def run(folder: Path, name: str) -> str:
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    paths = ["--data", str(folder), "--checkpoint", str(folder / "start"), "--run-dir", str(folder / name)]
    return launch(MAIN, ["finetune", "retrieval", *paths, *changes], processes=1)


def test_stopped_and_resumed_is_the_same_run(tmp_path):
    small.write_checkpoint(tmp_path / "start", small.write_pairs(tmp_path))
    run(tmp_path, "straight")
    straight = logged(tmp_path / "straight" / "seed-0")
    assert {"loss/task", "loss/contrastive"} <= straight[1].keys()
    assert straight[1]["loss/total"] == straight[1]["loss/task"] + straight[1]["loss/contrastive"]
    assert "dev/combined/mean_recall" in straight[2]

    stop = tmp_path / "stopped" / "seed-0" / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    assert "stopped at step 1" in run(tmp_path, "stopped")
    stop.unlink()
    assert "resuming from" in run(tmp_path, "stopped")
    assert logged(tmp_path / "stopped" / "seed-0") == straight
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("straight", "stopped")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["best_metric"] == "combined/mean_recall"
    # The paper's protocol keeps the names that `unimo report` reads.
    assert {"text_to_image/r@1", "image_to_text/r@10", "single/mean_recall"} <= results[0]["metrics"].keys()
