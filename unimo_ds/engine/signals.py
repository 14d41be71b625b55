"""Stopping on request: a signal, a stop file or the end of the launcher sets a flag, all ranks agree on it at a step boundary,
then the run is saved.

Saving inside a handler would deadlock: launchers signal ranks one after another, or only one (measured for `deepspeed`,
torchrun and Slurm), while a save needs them all. Handlers only set the flag, which is reduced over ranks. A launcher may exit
on a signal without notifying its ranks (`deepspeed` on any signal, torchrun on SIGUSR1), so each rank watches it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import EXIT_INTERRUPTED, EXIT_REQUEUE
from unimo_ds.utils.launchers import has_lost_launcher, launcher_processes
from unimo_ds.utils.starting import start_is_over

STOP_FILE = "stop"
_BY_FILE = 1000
_BY_LAUNCHER = 1
"""Below every signal number: if ranks have different reasons, the highest number is reported."""
HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class Stop:
    """Why the run stops now."""

    reason: str
    exit_status: int


class StopRequests:
    """Collects requests to stop on any rank."""

    def __init__(self, run_dir: Path, communicator: Communicator) -> None:
        self._file = run_dir / STOP_FILE
        self._communicator = communicator
        self._number = 0
        self._launchers = launcher_processes()

    def install(self) -> None:
        """Install the signal handlers. A second SIGINT ends the process at once.

        A signal to an earlier loop of this process still counts: it may come between two seeds of a fine-tuning.
        """
        for number in HANDLED:
            earlier = getattr(signal.signal(number, self._remember), "__self__", None)
            if isinstance(earlier, StopRequests) and earlier._number in HANDLED:
                self._number = earlier._number
        start_is_over()

    def check(self) -> Stop | None:
        """Why to stop, if any rank got a request. A collective, called at every step boundary."""
        if self._communicator.rank == 0 and not self._number and self._file.exists():
            self._number = _BY_FILE
        if not self._number and has_lost_launcher(self._launchers):
            self._number = _BY_LAUNCHER
        flag = torch.tensor([self._number], dtype=torch.int32, device=self._communicator.device)
        number = int(self._communicator.all_reduce_max(flag))
        if not number:
            return None
        if number == _BY_FILE:
            return Stop(f"{self._file} exists; remove it to go on", 0)
        if number == _BY_LAUNCHER:
            return Stop("the launcher has ended", EXIT_REQUEUE)
        if number == signal.SIGINT:
            return Stop("SIGINT", EXIT_INTERRUPTED)
        return Stop(signal.Signals(number).name, EXIT_REQUEUE)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._number = number
