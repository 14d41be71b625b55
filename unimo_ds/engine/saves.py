"""The checkpoints of one start of a run: each step is saved once, a failed save is survived, and the best one exists."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from unimo_ds.config import RunConfig
from unimo_ds.engine.checkpoint import CheckpointError, Saver
from unimo_ds.engine.log import RunLog
from unimo_ds.engine.setup import Engine
from unimo_ds.engine.state import Best, Progress
from unimo_ds.utils.agreement import fail_together

_QUIET_SECONDS = 30.0
"""Least time between terminal messages about saves; metrics.jsonl has every save."""


class Saves:
    """All methods but `report` are collectives. Call `go_on_from` first, and again after a rollback."""

    def __init__(self, engine: Engine, run_dir: Path, config: RunConfig, log: RunLog) -> None:
        self._saver, self._config, self._log = Saver(engine, run_dir, config), config, log
        self._communicator = engine.communicator
        self._quiet_until = 0.0

    def go_on_from(self, step: int, best: Best | None) -> None:
        """step: of the newest checkpoint; -1: there is none."""
        self._step = step
        self._best_on_disk = self._best_in_flight = best

    def check_room(self) -> None:
        """Raises UserError as `Saver.check_room`."""
        self._saver.check_room()

    def has(self, step: int) -> bool:
        """Whether the newest checkpoint, perhaps still being written, is of this step."""
        return self._step == step

    def save(self, progress: Progress, *, must_succeed: bool) -> Progress:
        """Save the engine's state, in the background if it may fail. Returns `progress` with a best checkpoint that exists.

        Raises:
            UserError: it must succeed and did not, or as `Saver.save`.
        """
        progress = self.settle(progress)
        wait = must_succeed or not self._config.checkpoint.in_background
        try:
            self._saver.save(progress, wait=wait)
        except CheckpointError as error:
            if must_succeed:
                fail_together(self._communicator, str(error))
            return self._forget(progress, error, progress.step)
        self._step, self._best_in_flight = progress.step, progress.best
        if wait:
            self._best_on_disk = self._best_in_flight
            self.report()
        return progress

    def settle(self, progress: Progress) -> Progress:
        """Wait for the checkpoint being written in the background, if any. Returns `progress` as `save`."""
        try:
            self._saver.settle()
            self._best_on_disk = self._best_in_flight
        except CheckpointError as error:
            progress = self._forget(progress, error, self._step)
        self.report()
        return progress

    def report(self) -> None:
        """Log the checkpoint that was completed since the last call, if any."""
        saved = self._saver.take_saved()
        if saved is not None:
            if time.monotonic() >= self._quiet_until or saved.step >= self._config.schedule.total_steps:
                self._log.say(f"saved {saved.folder}")
                self._quiet_until = time.monotonic() + _QUIET_SECONDS
            stall, write = round(saved.stall_seconds, 4), round(saved.write_seconds, 4)
            self._log.note(saved.step, "saved", stall_seconds=stall, write_seconds=write)

    def _forget(self, progress: Progress, error: CheckpointError, step: int) -> Progress:
        """After a failed save of `step`."""
        self._log.say(f"warning: {error}; training goes on and tries again at the next checkpoint")
        self._best_in_flight = self._best_on_disk
        is_lost = progress.best is not None and progress.best.step == step
        return dataclasses.replace(progress, best=self._best_on_disk) if is_lost else progress
