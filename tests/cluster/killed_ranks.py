"""Two ranks of the trainer without a launcher, to be killed: as real processes, or forked from one that has imported everything.

A start is mostly imports. Forked ranks do the same from there on, at a fraction of the cost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tests.cluster import recording_worker
from tests.cluster.cluster import REPOSITORY
from tests.cluster.rehearsal import TINY
from unimo_ds.utils.launchers import free_port

NUM_RANKS = 2
_WORKER = Path(__file__).with_name("recording_worker.py")
_IMPORTED_LATE = ("torch.utils.tensorboard",)
_FIXED = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}


class Rank(Protocol):
    """What `subprocess.Popen` offers and is needed here."""

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


class _Forked:
    """A process of `multiprocessing` in these words."""

    def __init__(self, log: str, environment: dict[str, str], arguments: list[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([recording_worker.__name__, __name__, *_IMPORTED_LATE])
        self._process = context.Process(target=recording_worker.record_forked, args=(log, environment, arguments))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked rank", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


@contextlib.contextmanager
def started(run_dir: Path, corpus: Path, total_steps: int, *, number: int, is_forked: bool) -> Iterator[list[Rank]]:
    """All ranks of one start, none of which outlives the block. Their output goes to RUN_DIR.log, what they read to
    RUN_DIR.samples.RANK."""
    settings = [f"--set=schedule.total_steps={total_steps}", "--set=checkpoint.every_steps=2"]
    arguments = [str(run_dir.with_suffix(".samples")), str(number), *TINY]
    arguments += ["--data", str(corpus), "--run-dir", str(run_dir), *settings]
    place = {"WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks: list[Rank] = []
    log = run_dir.with_suffix(".log")
    for rank in map(str, range(NUM_RANKS)):
        environment = {**_FIXED, **place, "RANK": rank, "LOCAL_RANK": rank}
        if is_forked:
            ranks.append(_Forked(str(log), environment, arguments))
            continue
        with log.open("a") as file:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(_WORKER), *arguments],
                    cwd=REPOSITORY,
                    env={**os.environ, **environment},
                    stdout=file,
                    stderr=file,
                )
            )
    try:
        yield ranks
    finally:
        kill(ranks)


def kill(ranks: Sequence[Rank]) -> None:
    """kill -9, and wait for the last."""
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.wait()


def wait_until_ended(ranks: Sequence[Rank], patience: float) -> bool:
    """Whether all have ended within so many seconds."""
    deadline = time.monotonic() + patience
    try:
        for rank in ranks:
            rank.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def run_to_the_end(run_dir: Path, corpus: Path, total_steps: int, *, number: int, patience: float) -> None:
    """Raises:
    AssertionError: it fails.
    """
    with started(run_dir, corpus, total_steps, number=number, is_forked=True) as ranks:
        assert wait_until_ended(ranks, patience)
        statuses = [rank.poll() for rank in ranks]
    assert statuses == [0] * NUM_RANKS, run_dir.with_suffix(".log").read_text()[-4000:]
