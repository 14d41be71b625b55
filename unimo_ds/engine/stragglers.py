"""Finds the rank that slows the others down, by comparing the time each spends outside collectives.

A step takes equally long on all ranks, because they wait for each other in it. A rank's own time is its wait for data plus its
forward passes (at ZeRO stage 3 a forward pass waits for other ranks too, so that only the wait for data is informative).
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from unimo_ds.utils.communicator import Communicator

_SLOW_RATIO = 1.5
_LEAST_SHARE = 0.05
"""Least delay to report, as a fraction of the step time."""


class Stopwatch:
    """Context manager that sums the time spent inside; on a GPU the device's time, without synchronising."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = self._began = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._is_cuda:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._events.append(pair)
            pair[0].record()
        else:
            self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began

    def read(self) -> float:
        """Seconds since the last reading. On a GPU it waits until the last block has finished."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1e3
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@dataclass(frozen=True)
class Straggler:
    """The slowest rank of some steps."""

    rank: int
    seconds: float
    """Its own time per step."""
    usual: float
    """The same for the median rank."""
    data_seconds: float
    """The part of `seconds` spent waiting for data."""
    is_slow: bool
    """Whether it delays the others by enough to matter."""

    @property
    def ratio(self) -> float:
        return self.seconds / self.usual if self.usual > 0 else 1.0


def slowest(waits: Sequence[float], forwards: Sequence[float], *, step_seconds: float) -> Straggler:
    """The slowest of at least two ranks.

    waits, forwards: [world_size] seconds per step that each rank waited for data and spent in forward passes. step_seconds:
    duration of a step, the same for all.
    """
    own = [wait + forward for wait, forward in zip(waits, forwards, strict=True)]
    rank = max(range(len(own)), key=own.__getitem__)
    usual = statistics.median_low(own)
    is_slow = own[rank] > _SLOW_RATIO * usual and own[rank] - usual > _LEAST_SHARE * step_seconds
    return Straggler(rank=rank, seconds=own[rank], usual=usual, data_seconds=waits[rank], is_slow=is_slow)


class SlowRanks:
    """Compares the ranks at each reading of the speed meter."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._hosts = communicator.all_gather_object(socket.gethostname())
        self._suspect = -1

    def compare(self, speed: Mapping[str, float]) -> tuple[dict[str, float], str]:
        """Numbers for the log, and a warning if the same rank was slow in this and the previous reading. A collective.

        speed: reading of this rank's `speed.SpeedMeter`.
        """
        if self._communicator.world_size == 1:
            return {}, ""
        step_seconds = speed["speed/seconds_per_step"]
        mine = [speed["speed/data_wait_share"] * step_seconds, speed["speed/forward_seconds"]]
        row = torch.tensor([mine], dtype=torch.float32, device=self._communicator.device)
        rows = self._communicator.all_gather_rows(row, [1] * self._communicator.world_size)
        waits, forwards = rows.T.tolist()
        found = slowest(waits, forwards, step_seconds=step_seconds)
        is_lasting = found.is_slow and found.rank == self._suspect
        self._suspect = found.rank if found.is_slow else -1
        text = (
            f"rank {found.rank} on {self._hosts[found.rank]} is slow and the others wait for it: {found.seconds:.3f} s of its "
            f"own work a step ({found.data_seconds:.3f} s of that for data), {found.usual:.3f} s is usual"
        )
        numbers = {"speed/slowest_rank": float(found.rank), "speed/slowest_rank_ratio": found.ratio}
        return numbers, text if is_lasting else ""
