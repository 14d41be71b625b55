"""Until its first step a rank has nothing to save: if it is told to stop, or loses its launcher, it just exits.

A rendezvous and the reading of weights are C++ code, in which no Python signal handler runs for minutes. So a thread ends the
process; the interpreter's wakeup descriptor passes signals to it at once, whatever the main thread is doing.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType

from unimo_ds.utils.errors import EXIT_REQUEUE
from unimo_ds.utils.launchers import has_lost_launcher, launcher_processes

_ENDING = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 1.0
_writer: int | None = None


def watch_start() -> None:
    """Until `start_is_over`, exit with EXIT_REQUEUE on SIGTERM, SIGUSR1, or when the launcher ends.

    Call it in the main thread, before slow imports: the loss of a launcher that ended earlier is not noticed.
    """
    global _writer
    if _writer is not None:
        return
    reader, _writer = os.pipe()
    os.set_blocking(_writer, False)
    for number in _ENDING:
        signal.signal(number, _leave_to_the_thread)
    signal.set_wakeup_fd(_writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, launcher_processes()), name="start", daemon=True).start()


def start_is_over() -> None:
    """Call when other handlers have taken over the signals."""
    global _writer
    if _writer is not None:
        signal.set_wakeup_fd(-1)
        os.close(_writer)
        _writer = None


def _watch(reader: int, launchers: tuple[int, ...]) -> None:
    reason = ""
    while not reason:
        if select.select([reader], [], [], _LOOK_SECONDS)[0]:
            numbers = os.read(reader, 1)
            if not numbers:
                os.close(reader)
                return
            reason = signal.Signals(numbers[0]).name if numbers[0] in _ENDING else ""
        elif has_lost_launcher(launchers):
            reason = "the launcher has ended"
    os.write(2, f"stopped before the first step ({reason}); the same command starts again\n".encode())
    os._exit(EXIT_REQUEUE)


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None: ...
