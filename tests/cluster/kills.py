"""kill -9 again and again over one run: what is left must be what an undisturbed run leaves.

    python -m tests.cluster.kills --kills 200 --run-dir runs/kills

Every start is killed at a random moment after its first new step, saving included (a checkpoint is saved every other step), and
started again. Compared at the end: every logged number of every step, in which each sample of the step has its part, no step
missing or twice, and the bits of weights and moments. Prints JSON: kills, how many of them fell into a save, and the seconds from
a start to its first new step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cluster.cluster import REPOSITORY, wait_until
from tests.cluster.rehearsal import TINY, write_corpus
from tests.runs import logged
from unimo_ds.engine import checkpoint_folder

_STARTING = 900.0
_STEPS_PER_KILL = 15
"""More than a start takes before it is killed, so that the last one still has something to do."""
_LONGEST_LIFE = 0.5
"""Seconds between the first new step and the kill, at most."""


@dataclass(frozen=True)
class Outcome:
    """What many kills have done to a run."""

    kills: int
    kills_while_saving: int
    damaged_latest: int
    """Restarts that found `latest` naming no good checkpoint."""
    equal_files: bool
    equal_metrics: bool
    whole_board: bool
    """Whether TensorBoard shows every step once."""
    seconds_to_first_step_median: float
    seconds_to_first_step_worst: float


def start(run_dir: Path, corpus: Path, total_steps: int) -> subprocess.Popen[str]:
    """One process of the trainer, in a session of its own, which the kill takes whole."""
    settings = [f"--set=schedule.total_steps={total_steps}", "--set=checkpoint.every_steps=2"]
    command = [
        sys.executable,
        "-m",
        "unimo_ds.train",
        *TINY,
        "--data",
        str(corpus),
        "--run-dir",
        str(run_dir),
        *settings,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with run_dir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )


def steps_on_board(run_dir: Path) -> list[int]:
    """Steps of the loss in TensorBoard, as it shows them after restarts."""
    board = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return [event.step for event in board.Scalars("loss/total")]


def torment(folder: Path, *, kills: int, seed: int = 0) -> Outcome:
    """Run once in peace and once under `kills` kills.

    Raises:
        AssertionError: a start that fails by itself or takes no step.
    """
    corpus = write_corpus(folder / "corpus")
    total_steps = _STEPS_PER_KILL * (kills + 1)
    straight, killed = folder / "straight", folder / "killed"
    process = start(straight, corpus, total_steps)
    assert process.wait() == 0, straight.with_suffix(".log").read_text()[-4000:]
    moments = random.Random(seed)
    durations, while_saving, damaged = [], 0, 0
    checkpoints, log = killed / checkpoint_folder.FOLDER, killed.with_suffix(".log")
    for _ in range(kills):
        newest = checkpoint_folder.named(checkpoints / checkpoint_folder.LATEST)
        damaged += bool(newest and checkpoint_folder.problems_of(checkpoints / newest))
        told_before = log.stat().st_size if log.is_file() else 0
        began = time.monotonic()
        process = start(killed, corpus, total_steps)

        def has_stepped(process: subprocess.Popen[str] = process, told_before: int = told_before) -> bool:
            return process.poll() is not None or "\nstep " in log.read_text()[told_before:]

        wait_until(has_stepped, timeout=_STARTING, what="a new step")
        assert process.poll() is None, f"ended before it was killed:\n{log.read_text()[-4000:]}"
        durations.append(time.monotonic() - began)
        time.sleep(moments.uniform(0.0, _LONGEST_LIFE))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while_saving += bool(list(checkpoints.glob(".tmp-step-*")))
    process = start(killed, corpus, total_steps)
    assert process.wait() == 0, killed.with_suffix(".log").read_text()[-4000:]
    last = f"{checkpoint_folder.FOLDER}/step-{total_steps}"
    return Outcome(
        kills=kills,
        kills_while_saving=while_saving,
        damaged_latest=damaged,
        equal_files=all(
            (straight / last / name).read_bytes() == (killed / last / name).read_bytes()
            for name in checkpoint_folder.FILES.values()
        ),
        equal_metrics=logged(straight) == logged(killed) and sorted(logged(killed)) == list(range(1, total_steps + 1)),
        whole_board=steps_on_board(killed) == list(range(1, total_steps + 1)),
        seconds_to_first_step_median=statistics.median(durations),
        seconds_to_first_step_worst=max(durations),
    )


def main() -> int:
    """Returns 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--run-dir", type=Path, default=Path("runs/kills"), help="folder for corpus and runs, new or empty"
    )
    options = parser.parse_args()
    options.run_dir.mkdir(parents=True, exist_ok=True)
    outcome = torment(options.run_dir.resolve(), kills=options.kills, seed=options.seed)
    print(json.dumps(asdict(outcome)), flush=True)
    return (
        0 if outcome.equal_files and outcome.equal_metrics and outcome.whole_board and not outcome.damaged_latest else 1
    )


if __name__ == "__main__":
    sys.exit(main())
