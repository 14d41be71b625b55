"""If a rank stops, all others hang in a collective: report which rank it is, print every stack, and end the process.

Two timers run beside the trainer; every step, every micro-batch of an evaluation, and every save resets both. Shortly before the
limit a thread writes this rank's position into the group's store, and one rank prints who waits for whom. At the limit
`faulthandler`, which does not need the GIL, prints the stacks and ends the process, long before a launcher's or NCCL's timeout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from unimo_ds.utils.communicator import Communicator

_PACKAGE = Path(__file__).parents[1]
_WRITE_AT, _TELL_AT = 0.8, 0.9
"""Fractions of the limit."""
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")


@dataclass(frozen=True)
class Position:
    """Where a rank is in the code."""

    rank: int
    host: str
    process: int
    place: str
    """The innermost Python line, and the line of this package that led there."""
    collective: str
    """The collective it waits in; empty if none."""
    turn: int
    """Number of its `alive` calls; ranks differ by at most one."""


class Watchdog:
    """Watches this process from the first `alive` to `stop`. minutes: time without `alive` until it ends it; 0: never."""

    def __init__(self, communicator: Communicator, *, minutes: float) -> None:
        self._communicator = communicator
        self._limit = 60.0 * minutes
        self._since = time.monotonic()
        self._turn = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def alive(self) -> None:
        """Reset the timers. Every rank calls it at the same points of the run."""
        if not self._limit:
            return
        self._since = time.monotonic()
        self._turn += 1
        faulthandler.dump_traceback_later(self._limit, exit=True)
        if self._thread is None and self._communicator.world_size > 1:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def working(self) -> None:
        """Reset the timers in the middle of a turn: of an evaluation, in which ranks work apart for as long as it takes."""
        if self._limit:
            self._since = time.monotonic()
            faulthandler.dump_traceback_later(self._limit, exit=True)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._ended.set()

    def _watch(self) -> None:
        written = told = -1
        while not self._ended.wait(self._limit / 100.0):
            idle, turn = time.monotonic() - self._since, self._turn
            # If the store cannot be reached, rank 0 has stopped; the stacks are printed in any case.
            with contextlib.suppress(RuntimeError, OSError, ValueError):
                if idle > _WRITE_AT * self._limit and written != turn:
                    written = turn
                    mine = dataclasses.asdict(self._position())
                    self._store().set(f"position/{self._communicator.rank}", json.dumps(mine))
                if idle > _TELL_AT * self._limit and told != turn:
                    told = turn
                    self._tell(idle)

    def _tell(self, idle: float) -> None:
        store = self._store()
        # Ranks are at most one turn apart: the first to claim both its turn and the previous one reports for all.
        if any(store.add(f"told/{turn}", 1) > 1 for turn in (self._turn - 1, self._turn)):
            return
        positions: list[Position | None] = []
        for rank in range(self._communicator.world_size):
            key = f"position/{rank}"
            found = Position(**json.loads(store.get(key))) if store.check([key]) else None
            positions.append(found if found is not None and found.turn >= self._turn - 1 else None)
        print(f"no progress for {idle:.0f} s (engine.hang_minutes)\n{who_waits_for_whom(positions)}", flush=True)

    def _store(self) -> Store:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = datetime.timedelta(seconds=max(1.0, 0.05 * self._limit))
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
        return PrefixStore("watchdog", store)

    def _position(self) -> Position:
        place, collective = _place(threading.main_thread().ident)
        return Position(
            rank=self._communicator.rank,
            host=socket.gethostname(),
            process=os.getpid(),
            place=place,
            collective=collective,
            turn=self._turn,
        )


def _place(thread: int | None) -> tuple[str, str]:
    """A thread's innermost line with the package's own line above it, and the collective it is in, if any."""
    frame = sys._current_frames().get(thread or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    if not stack:
        return "nowhere", ""
    collective = next(
        (call.name for call in reversed(stack) if any(part in call.filename for part in _COLLECTIVES)), ""
    )
    own = next((call for call in reversed(stack) if Path(call.filename).is_relative_to(_PACKAGE)), stack[-1])
    place = _line(own)
    return (place if own is stack[-1] or collective else f"{_line(stack[-1])} under {place}"), collective


def _line(call: Any) -> str:
    path = Path(call.filename)
    shown = path.relative_to(_PACKAGE) if path.is_relative_to(_PACKAGE) else path.name
    return f"{shown}:{call.lineno} {call.name}"


def who_waits_for_whom(positions: Sequence[Position | None]) -> str:
    """The report, one line per place: silent ranks, ranks outside any collective, ranks waiting in one.

    positions: of every rank; None if it did not write one.
    """
    silent = [rank for rank, position in enumerate(positions) if position is None]
    groups: dict[tuple[str, str], list[Position]] = defaultdict(list)
    for position in filter(None, positions):
        groups[position.collective, position.place].append(position)
    busy = {key: group for key, group in groups.items() if not key[0]}
    waiting = {key: group for key, group in groups.items() if key[0]}
    awaited = silent + sorted(position.rank for group in busy.values() for position in group)
    lines = []
    if silent:
        lines.append(f"  {_ranks(silent)} said nothing: stopped, gone, or busy outside Python")
    lines += [f"  {_names(group)} at {place}, in no collective" for (_, place), group in busy.items()]
    lines += [f"  {_names(group)} in {collective} at {place}" for (collective, place), group in waiting.items()]
    if awaited and waiting:
        waiters = sorted(position.rank for group in waiting.values() for position in group)
        lines.append(f"  {_ranks(waiters)} wait{'s' if len(waiters) == 1 else ''} for {_ranks(awaited)}")
    elif len(waiting) > 1:
        lines.append("  the ranks are in different collectives, or one of their connections is dead")
    elif waiting:
        lines.append("  all ranks are in the same collective: a connection between them is dead")
    return "\n".join(lines)


def _names(group: Sequence[Position]) -> str:
    ranks = _ranks([position.rank for position in group])
    return f"{ranks} ({group[0].host}, process {group[0].process})" if len(group) == 1 else ranks


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
