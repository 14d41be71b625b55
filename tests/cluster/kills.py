"""kill -9 again and again over one run: what is left must be what an undisturbed run leaves.

    python -m tests.cluster.kills --kills 200 --run-dir runs/kills

Two ranks save a checkpoint every other step. Of the kills, one in five falls into the start, the others at a random moment after
its first new step, saving included; half of them take all ranks at once, as a lost node does, half one rank, as the kernel does
when memory is short: the other then has to end by itself. Compared at the end: the samples of every step that counts, every
logged number, TensorBoard's steps, and the bits of weights and moments. Prints JSON.

Every tenth start is a real one, whose time to its first new step is measured; the others are forked with everything imported.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.cluster import wait_until
from tests.cluster.killed_ranks import NUM_RANKS, Rank, kill, run_to_the_end, started, wait_until_ended
from tests.cluster.rehearsal import write_corpus
from tests.runs import logged
from unimo_ds.engine import checkpoint_folder
from unimo_ds.utils.new_folder import refuse_occupied
from unimo_ds.utils.running import run_command

_PATIENCE = 900.0
_STEPS_PER_KILL = 4
"""In the mean, between the first new step and the kill."""
_LEAST_LEFT = 60
"""Steps before the end of the run at which killing ends, all kills done or not."""
_WAIT_IN_START = 5.0
"""Seconds after which those left behind in a start are killed too, as `srun --wait` does: nothing has begun."""
_SHARE_IN_START = 0.2
_REAL_EVERY = 10


@dataclass(frozen=True)
class Outcome:
    """What many kills have done to a run."""

    kills: int
    kills_while_saving: int
    kills_in_start: int
    kills_of_one_rank: int
    damaged_latest: int
    """Restarts that found `latest` naming no good checkpoint."""
    samples: int
    """Read by the undisturbed run over all of its steps."""
    samples_lost: int
    samples_doubled: int
    """Over the steps that count: of each start, those before the step that the next one began at."""
    steps_taken_again: int
    """Lost with the kills: taken after the checkpoint that the next start found."""
    equal_files: bool
    equal_metrics: bool
    whole_board: bool
    """Whether TensorBoard shows every step once."""
    measured_starts: int
    seconds_to_first_step_median: float
    seconds_to_first_step_worst: float
    seconds_until_survivor_ended_worst: float
    """After one rank alone was killed."""

    @property
    def is_good(self) -> bool:
        nothing_lost = not (self.damaged_latest or self.samples_lost or self.samples_doubled)
        return nothing_lost and self.equal_files and self.equal_metrics and self.whole_board


def steps_on_board(run_dir: Path) -> list[int]:
    """Steps of the loss in TensorBoard, as it shows them after restarts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return [event.step for event in board.Scalars("loss/total")]


def samples_read(run_dir: Path) -> tuple[Counter[tuple[int, str]], int]:
    """(step, key) of every sample over the steps that count, and how many other steps were begun."""
    notes = [
        json.loads(line)
        for rank in range(NUM_RANKS)
        for line in run_dir.with_suffix(f".samples.{rank}").read_text().splitlines()
    ]
    first_steps: dict[int, int] = {}
    for start, step, _ in notes:
        first_steps[start] = min(step, first_steps.get(start, step))
    # A step counts where no later start took it again.
    limits = {
        start: min((step for later, step in first_steps.items() if later > start), default=sys.maxsize)
        for start in first_steps
    }
    counts: Counter[tuple[int, str]] = Counter()
    again: set[tuple[int, int]] = set()
    for start, step, keys in notes:
        if step < limits[start]:
            counts.update((step, key) for key in keys)
        else:
            again.add((start, step))
    return counts, len(again)


def tail_of(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def torment(folder: Path, *, kills: int, seed: int = 0) -> Outcome:
    """Run once in peace and once under `kills` kills.

    Raises:
        AssertionError: a start that fails by itself or takes no step, or a rank that lives on alone.
    """
    corpus = write_corpus(folder / "corpus")
    total_steps = _STEPS_PER_KILL * kills + 2 * _LEAST_LEFT
    straight, killed = folder / "straight", folder / "killed"
    checkpoints, log = killed / checkpoint_folder.FOLDER, killed.with_suffix(".log")
    log.touch()
    began = time.monotonic()
    run_to_the_end(straight, corpus, total_steps, number=0, patience=_PATIENCE + 2 * total_steps)
    longest_life = 2 * _STEPS_PER_KILL * (time.monotonic() - began) / total_steps
    chance = random.Random(seed)
    starts: dict[bool, list[float]] = {True: [], False: []}  # seconds to the first new step, of forked and real ones
    survivals = [0.0]
    done = while_saving = in_start = of_one_rank = damaged = 0

    def take_life(ranks: Sequence[Rank], *, is_forked: bool) -> None:
        nonlocal while_saving, in_start, of_one_rank
        began, told_before = time.monotonic(), log.stat().st_size
        known = starts[is_forked]
        is_start = bool(known) and is_forked and chance.random() < _SHARE_IN_START
        if is_start:
            in_start += 1
            time.sleep(chance.uniform(0.0, statistics.median(known)))
        else:

            def has_stepped() -> bool:
                return any(rank.poll() is not None for rank in ranks) or "\nstep " in tail_of(log, told_before)

            wait_until(has_stepped, timeout=_PATIENCE, what="a new step", every=0.02)
            known.append(time.monotonic() - began)
            assert all(rank.poll() is None for rank in ranks), f"ended before it was killed:\n{log.read_text()[-4000:]}"
            time.sleep(chance.uniform(0.0, longest_life))
        victims = [chance.choice(ranks)] if chance.random() < 0.5 else ranks
        kill(victims)
        while_saving += bool(list(checkpoints.glob(".tmp-step-*")))
        if len(victims) == 1:
            of_one_rank += 1
            killed_at = time.monotonic()
            has_ended = wait_until_ended(ranks, _WAIT_IN_START if is_start else _PATIENCE)
            assert has_ended or is_start, "a rank lives on alone"
            if not is_start:
                survivals.append(time.monotonic() - killed_at)

    for number in range(kills):
        newest = checkpoint_folder.named(checkpoints / checkpoint_folder.LATEST)
        damaged += bool(newest and checkpoint_folder.problems_of(checkpoints / newest))
        if newest and int(newest.removeprefix("step-")) > total_steps - _LEAST_LEFT:
            break
        if number % 10 == 0:
            print(f"{number} kills", file=sys.stderr, flush=True)
        is_forked = number % _REAL_EVERY != 0
        with started(killed, corpus, total_steps, number=number, is_forked=is_forked) as ranks:
            take_life(ranks, is_forked=is_forked)
        done += 1
    run_to_the_end(killed, corpus, total_steps, number=kills, patience=_PATIENCE + 2 * total_steps)
    last = f"{checkpoint_folder.FOLDER}/step-{total_steps}"
    (expected, none_again), (found, taken_again) = samples_read(straight), samples_read(killed)
    assert none_again == 0
    return Outcome(
        kills=done,
        kills_while_saving=while_saving,
        kills_in_start=in_start,
        kills_of_one_rank=of_one_rank,
        damaged_latest=damaged,
        samples=expected.total(),
        samples_lost=(expected - found).total(),
        samples_doubled=(found - expected).total(),
        steps_taken_again=taken_again,
        equal_files=all(
            (straight / last / name).read_bytes() == (killed / last / name).read_bytes()
            for name in checkpoint_folder.FILES.values()
        ),
        equal_metrics=logged(straight) == logged(killed) and sorted(logged(killed)) == list(range(1, total_steps + 1)),
        whole_board=steps_on_board(killed) == list(range(1, total_steps + 1)),
        measured_starts=len(starts[False]),
        seconds_to_first_step_median=round(statistics.median(starts[False]), 2),
        seconds_to_first_step_worst=round(max(starts[False]), 2),
        seconds_until_survivor_ended_worst=round(max(survivals), 2),
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
    refuse_occupied(options.run_dir, option="--run-dir")  # a finished run would be killed in no step
    options.run_dir.mkdir(parents=True, exist_ok=True)
    outcome = torment(options.run_dir.resolve(), kills=options.kills, seed=options.seed)
    print(json.dumps(asdict(outcome)), flush=True)
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
