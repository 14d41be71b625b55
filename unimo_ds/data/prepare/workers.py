"""Runs the tasks of a stage: in this process, in several local processes, or on the ranks of an MPI job.

A task is a call of a module-level function with small arguments. It writes its results atomically to its own files and returns
next to nothing; so tasks may run in any order, anywhere, twice or after a kill, with the same files. Each task computes on one
thread, since sums of floats depend on the number of threads.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from unimo_ds.data.prepare.progress import progress
from unimo_ds.utils.errors import UserError

_WAITING_PER_WORKER = 2
"""Tasks submitted at a time, per worker: enough to keep workers busy, few enough to bound memory."""
_T = TypeVar("_T")


class Workers:
    """Workers for all stages of a command: processes take seconds to start, so they are kept until `close`."""

    def __init__(self, number: int | None = 1, executor: Executor | None = None) -> None:
        """
        number: 1: only this process. None: one per core.
        executor: use this one regardless of the number (the ranks of an MPI job).
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
        """(number of the task, its result), in the order of completion.

        unit: see `progress`.

        Raises:
            UserError: raised by a task, and further tasks are not started; or a worker died.
        """
        if self.executor is None and min(self.number, len(tasks)) <= 1:
            found: Iterator[tuple[int, _T]] = (
                (i, one_thread(function, *arguments)) for i, arguments in enumerate(tasks)
            )
        else:
            found = _in_flight(self._pool(), function, tasks, _WAITING_PER_WORKER * self.number)
        return progress(found, label=label, total=len(tasks), unit=unit)

    def run_all(
        self, function: Callable[..., _T], tasks: Sequence[tuple[Any, ...]], *, label: str, unit: str = "shards"
    ) -> list[_T]:
        """The results of `run`, in the order of the tasks."""
        found = dict(self.run(function, tasks, label=label, unit=unit))
        return [found[number] for number in range(len(tasks))]

    @contextmanager
    def for_extractor(self, *, is_network: bool) -> Iterator[Workers]:
        """These; for a network, which each worker loads, one worker per GPU or a single one, unless a number was given."""
        if not (is_network and self._is_by_default):
            yield self
            return
        from unimo_ds.utils.machine import num_gpus

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
            # A fork of a process that has run torch or a thread pool may hang; spawn starts clean.
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(
                self.number, mp_context=context, initializer=_begin, initargs=(context.Value("i", 0),)
            )
        return self._processes

    def close(self) -> None:
        """End the processes, if any; tasks not started are dropped."""
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
    """The other ranks of this MPI job as workers; None on those ranks, which work until the first rank is done.

    Raises:
        UserError: MPI cannot be used, or the job has only one rank.
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
        # It is an Executor, though its type stubs do not say so.
        yield None if executor is None else Workers(ranks - 1, cast(Executor, executor))


def _in_flight(
    pool: Executor, function: Callable[..., _T], tasks: Sequence[tuple[Any, ...]], most: int
) -> Iterator[tuple[int, _T]]:
    """Results in the order of completion, with at most `most` tasks submitted at a time."""
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
    """Initialise a worker: its number decides which of the machine's GPUs it uses (`machine.worker_device`)."""
    with num_begun.get_lock():
        os.environ["UNIMO_WORKER"] = str(num_begun.value)
        num_begun.value += 1
    _follow_parent()


def _follow_parent() -> None:
    """End this worker if its parent is killed, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
