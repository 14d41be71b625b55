"""Running the tasks of a stage: in this process, in processes of this machine, or over the ranks of an MPI job.

A task is a call of a module-level function with small arguments. It writes what it makes to files of its own, whole or not at
all, and gives back next to nothing; so tasks may be done in any order, by anyone, twice or after a kill, and the files are the
same. Every task computes on one thread, for sums of floats depend on how many threads share them.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from unimo_ds.utils.errors import UserError

_WAITING_PER_WORKER = 2
"""Tasks handed out beyond those being worked on: enough to keep workers busy, few enough to keep memory flat."""
_T = TypeVar("_T")


class Workers:
    """Who does the work, over all stages of a command: processes take seconds to start, so they are kept until `close`."""

    def __init__(self, number: int | None = 1, executor: Executor | None = None) -> None:
        """
        number: 1: this process alone. None: one per core.
        executor: use this one, whatever the number (the ranks of an MPI job).
        """
        self.number = len(os.sched_getaffinity(0)) if number is None else number
        self.executor = executor
        self._is_by_default = number is None
        self._processes: ProcessPoolExecutor | None = None

    def run(
        self,
        function: Callable[..., _T],
        tasks: Sequence[tuple[Any, ...]],
        *,
        label: str,
        unit: str = "",
    ) -> Iterator[tuple[int, _T]]:
        """(number of the task, its result) as they come.

        unit: what a task is, several of it, for the rate shown to a person.

        Raises:
            UserError: that of a task; the others are not begun. Or a worker died.
        """
        number = min(self.number, len(tasks))
        with _Display(label, len(tasks), unit) as display:
            if self.executor is None and number <= 1:
                for i, arguments in enumerate(tasks):
                    yield i, one_thread(function, *arguments)
                    display.advance()
                return
            for i, result in _in_flight(self._pool(), function, tasks, _WAITING_PER_WORKER * self.number):
                yield i, result
                display.advance()

    @contextmanager
    def for_extractor(self, *, is_network: bool) -> Iterator[Workers]:
        """These, or for a network, which each worker holds, one per GPU or one alone, unless a number was given."""
        if not (is_network and self._is_by_default):
            yield self
            return
        from unimo_ds.data.vision.detectors.device import num_gpus

        gpus = num_gpus()
        number = max(gpus, 1)
        why = "one per GPU" if gpus else "no GPU here"
        print(
            f"{number} worker{'s' * (number > 1)} for the regions, each holds the network ({why}; --workers N)",
            file=sys.stderr,
        )
        with Workers(number) as fewer:
            yield fewer

    def _pool(self) -> Executor:
        if self.executor is not None:
            return self.executor
        if self._processes is None:
            # Forking a process that has run torch or a thread pool may hang; a spawned one starts clean.
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(
                self.number, mp_context=context, initializer=_begin, initargs=(context.Value("i", 0),)
            )
        return self._processes

    def close(self) -> None:
        """End the processes, if there are any; tasks that have not begun are dropped."""
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)
            self._processes = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def one_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """The function's result, computed on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def mpi_workers() -> Iterator[Workers | None]:
    """Workers that are the other ranks of this MPI job; None on those ranks, which work until the first rank is done.

    Raises:
        UserError: MPI cannot be used, or the job has one rank alone.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise UserError(f"--executor mpi needs mpi4py and an MPI library ({error}); use --executor processes") from None
    ranks = MPI.COMM_WORLD.Get_size()
    if ranks < 2:
        raise UserError(
            "--executor mpi needs at least two ranks; start it with `mpirun -n 4 unimo prepare ...` or srun"
        )
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        # An Executor in all but its stubs' name.
        yield None if executor is None else Workers(ranks - 1, cast(Executor, executor))


def _in_flight(
    pool: Executor, function: Callable[..., _T], tasks: Sequence[tuple[Any, ...]], most: int
) -> Iterator[tuple[int, _T]]:
    """Results as they come, with at most `most` tasks handed out at a time."""
    waiting: dict[Future[_T], int] = {}
    rest = iter(enumerate(tasks))
    try:
        while True:
            for i, arguments in rest:
                waiting[pool.submit(one_thread, function, *arguments)] = i
                if len(waiting) >= most:
                    break
            if not waiting:
                return
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker died (killed, or out of memory); run the same command again to go on, perhaps with fewer --workers"
        ) from None
    finally:
        for future in waiting:
            future.cancel()


def _begin(num_begun: Any) -> None:
    """A new worker: it knows its number, by which workers share the machine's GPUs (`detectors/device.py`)."""
    with num_begun.get_lock():
        os.environ["UNIMO_WORKER"] = str(num_begun.value)
        num_begun.value += 1
    _follow_parent()


def _follow_parent() -> None:
    """A worker whose parent was killed ends too, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _Display:
    """Done, total and rate: a bar where a person is watching, nothing elsewhere."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.bar: Any = None

    def __enter__(self) -> _Display:
        if sys.stderr.isatty() and self.total:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self.bar = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, rate="")
            self.start = time.perf_counter()
            self.done = 0
        return self

    def advance(self) -> None:
        if self.bar is not None:
            self.done += 1
            rate = self.done / max(time.perf_counter() - self.start, 1e-9)
            self.bar.update(self.task, advance=1, rate=f"{rate:.3g} {self.unit}/s")

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
