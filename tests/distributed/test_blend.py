"""One run over data folders in two places: trained by two processes, stopped, resumed to the same bits, and held to its data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.prepare.raw import small_extractor, write_photographs
from tests.distributed.launching import deepspeed, launch, processes_of_rank, started, torchrun
from tests.distributed.test_train import SETTINGS, TRAIN
from tests.runs import await_two_steps, logged
from unimo_ds.data.prepare.command import main as prepare

TOTAL_STEPS = 8
CHANGES = {
    "schedule.total_steps": TOTAL_STEPS,
    "checkpoint.every_steps": 3,
    "data.num_workers": 1,
    "data.kind_weights.image": 0,
    "contrast.related_images": 0,
}


def command(*places: Path, run_dir: Path) -> list[str]:
    data = [part for place in places for part in ("--data", str(place))]
    flags = [part for key, value in {**SETTINGS, **CHANGES}.items() for part in ("--set", f"{key}={value}")]
    return [*data, "--run-dir", str(run_dir), *flags]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photographs with captions and held-out ones, as the README makes them; texts and photographs on another disk."""
    raw, here, there = (tmp_path_factory.mktemp(name) for name in ("raw", "here", "there"))
    pairs = ["import", "--kind", "pairs", "--workers", "1"]
    like = ["--like", str(here / "train")]
    imports = []
    for number, (folder, source, means) in enumerate(
        [
            (here / "train", "first", ["--extractor", str(small_extractor(raw)), "--vocabulary-size", "300"]),
            (here / "held_out", "kept", like),
            (there / "train", "second", like),
        ]
    ):
        (raw / source).mkdir()
        tar, captions = write_photographs(raw / source, 9 + number)
        named = ["--images", str(tar), "--captions", str(captions), "--source", source]
        imports.append([*pairs, *named, *means, "--output", str(folder)])
    (raw / "texts.txt").write_text("".join(f"a dog and {number} cats on the grass\n" for number in range(30)))
    texts = ["import", "--kind", "texts", "--workers", "1", "--input", str(raw / "texts.txt"), *like]
    for words in (*imports, [*texts, "--output", str(there / "train")]):
        assert prepare(words) == 0
    return here, there


def test_two_folders_train_stop_and_resume_bit_for_bit(places: tuple[Path, Path], tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    launch(TRAIN, command(*places, run_dir=straight), processes=2, launcher=deepspeed)
    with started([*deepspeed(2), str(TRAIN), *command(*places, run_dir=stopped)]) as family:
        await_two_steps(stopped, family, seconds=300)
        for target in processes_of_rank(family.pid, 1):
            os.kill(target, signal.SIGUSR1)
        output, _ = family.communicate(timeout=300)
    assert family.returncode == 75, output[-4000:]
    assert re.search(r"stopped at step [2-7] \(SIGUSR1\)", output), output[-4000:]
    here, there = (str(place / "train") for place in places)
    data = json.loads((stopped / "config.json").read_text())["data"]
    assert (data["path"], data["held_out_path"]) == (f"{here}::{there}", str(places[0] / "held_out"))

    words = [sys.executable, str(TRAIN), *command(*places[::-1], run_dir=stopped)]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1] == (
        f"error: {stopped} holds a run on other data than data.path='{there}::{here}' (data.path='{here}::{there}' there); give "
        "that data, several folders in the same order, or another --run-dir"
    )

    launch(TRAIN, command(*places, run_dir=stopped), processes=2, launcher=torchrun)
    assert logged(stopped) == logged(straight)
    assert list(logged(straight)) == list(range(1, TOTAL_STEPS + 1))
    files = [run / "checkpoints" / f"step-{TOTAL_STEPS}" / "model.safetensors" for run in (straight, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
