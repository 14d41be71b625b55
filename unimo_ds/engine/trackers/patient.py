"""A tracker that cannot delay training: its library runs in its own thread, and errors there give one warning."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unimo_ds.engine.signals import HANDLED
from unimo_ds.engine.trackers.protocol import TrackedRun, Tracker, TrackerModule

_MOST_WAITING = 5000
"""Logged steps queued for a library; further ones are dropped."""
_SECONDS_TO_LET_GO = 5.0
T = TypeVar("T")


class PatientTracker:
    """Queues calls for the tracker and returns at once. The first call opens the run."""

    def __init__(self, name: str, module: TrackerModule, run: TrackedRun) -> None:
        self._name, self._module, self._run = name, module, run
        self._waiting: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._has_warned = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._add(lambda tracker: tracker.log(step, values))

    def show(self, step: int, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._add(lambda tracker: tracker.show(step, pictures))

    def finish(self, status: int) -> None:
        """Queue the end of the run; the last call before `leave`."""
        if self._thread.ident is not None:
            self._waiting.put(lambda tracker: tracker.finish(status))
            self._waiting.put(None)

    def leave(self, end: float) -> None:
        """Wait for the queue.

        end: deadline, in time.monotonic() seconds.
        """
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._warn("has not taken all in time")
            self._attempt(self._module.abandon)
            self._thread.join(_SECONDS_TO_LET_GO)

    def _add(self, call: Callable[[Tracker], None]) -> None:
        if self._thread.ident is None:
            self._thread.start()
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put(call)
        else:
            self._warn("does not keep up, and misses steps")

    def _work(self) -> None:
        # Slurm signals all processes of a rank. The library's own processes inherit this mask and so survive (wandb-core for
        # SIGUSR1; it still reacts to SIGTERM and SIGINT).
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        tracker = self._attempt(lambda: self._module.open_run(self._run))
        for call in iter(self._waiting.get, None):
            if tracker is not None:
                self._attempt(call, tracker)

    def _attempt(self, call: Callable[..., T], *arguments: Tracker) -> T | None:
        try:
            return call(*arguments)
        except Exception as error:  # a library may raise anything, but must not end a run
            self._warn(f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return None

    def _warn(self, problem: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._run.say(f"warning: {self._name} {problem}; training goes on, and metrics.jsonl has every step")
