"""R8 on a file system that is really full: the run goes on, earlier checkpoints stay, and later ones are written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.launching import started
from tests.distributed.test_train import TRAIN, arguments
from unimo_ds.data.prepare.scenes import write_demo_corpus
from unimo_ds.engine import checkpoint, checkpoint_folder, ds_config
from unimo_ds.engine.launch import stop_processes
from unimo_ds.engine.setup import make_engine
from unimo_ds.engine.state import Progress

from .test_checkpoint import CONFIG, loaded_step, make_model, save

MEBIBYTE = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MEBIBYTE))
        except OSError:
            pass
    return filler


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room when the save begins; then somebody else takes it."""
    engine = make_engine(make_model(20_000), CONFIG, ds_config.load("zero0_fp32", CONFIG, 1))
    save(engine, small_disk, 1)
    make_folder = checkpoint_folder.begin
    fillers: list[Path] = []

    def begin_then_fill(*items: object) -> Path:
        made = make_folder(*items)  # type: ignore[arg-type]
        fillers.append(fill(small_disk))
        return made

    for in_background in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_folder, "begin", begin_then_fill)
            saver = checkpoint.Saver(engine, small_disk, CONFIG)
            if in_background:
                saver.save(Progress(step=2), wait=False)
            with pytest.raises(checkpoint.CheckpointError, match=r"No space left .* [\d,]+ bytes are free and"):
                saver.settle() if in_background else saver.save(Progress(step=2), wait=True)
        assert sorted(item.name for item in (small_disk / "checkpoints").iterdir()) == ["latest", "step-1"]
        assert loaded_step(engine, small_disk) == 1
        fillers.pop().unlink()
    save(engine, small_disk, 3)
    assert loaded_step(engine, small_disk) == 3
    engine.close()
    stop_processes()


def test_a_run_outlives_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """Checkpoints are given up with a warning, lines of metrics.jsonl wait, and all is well once there is room again."""
    corpus, run_dir, total = tmp_path / "corpus", small_disk / "run", 100
    write_demo_corpus(corpus, num_pairs=80, num_images=20, num_texts=20, num_held_out=8)
    flags = arguments(corpus, run_dir, schedule__total_steps=total, data__num_workers=0)
    log = tmp_path / "log"
    with log.open("w") as file, started([sys.executable, str(TRAIN), *flags], output=file) as process:

        def wait_for(text: str) -> None:
            deadline = time.monotonic() + 300
            while text not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            assert text in log.read_text(), log.read_text()[-3000:]

        wait_for("saved ")
        filler = fill(small_disk)
        wait_for("training goes on and tries again")
        filler.unlink()
        assert process.wait(300) == 0, log.read_text()[-3000:]
    assert "no room for a checkpoint" in log.read_text()
    assert "its lines wait, training goes on" in log.read_text()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "event" not in line] == list(range(1, total + 1))
    assert checkpoint_folder.problems_of(run_dir / "checkpoints" / f"step-{total}") == []
