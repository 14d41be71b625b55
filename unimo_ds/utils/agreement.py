"""Ranks that fail together, with one sentence for all of them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import ToldError, UserError, sentence_of, tell

T = TypeVar("T")
_PAUSE_SECONDS = 10.0
"""Between two meetings of ranks of which one is at work."""
_SIGN_OF_LIFE_SECONDS = 1.0
"""That a rank at work has computed; its idle threads take some hundredths in a quarter of an hour."""


def fail_together(communicator: Communicator, problem: str) -> None:
    """Go on where no rank has a problem. A collective.

    problem: what is wrong as this rank sees it; empty where nothing is.

    Raises:
        UserError: on all ranks, what is wrong on any. Rank 0 has told it by then: a launcher ends the others as soon as it sees
            one go, so nobody goes before.
    """
    found = communicator.all_gather_object((problem, socket.gethostname()))
    first_rank = {text: rank for rank, (text, _) in reversed(list(enumerate(found))) if text}
    if not first_rank:
        return
    told = "; ".join(
        text if rank == 0 else f"rank {rank} on {found[rank][1]}: {text}"
        for text, rank in sorted(first_rank.items(), key=lambda item: item[1])
    )
    if communicator.world_size == 1:
        raise UserError(told)
    if communicator.rank == 0:
        tell(told)
    communicator.all_gather_object(None)
    raise ToldError(told)


@contextlib.contextmanager
def failing_together(communicator: Communicator) -> Iterator[None]:
    """Bad input that any rank finds inside is told once and ends all of them. A collective; there is none inside.

    Raises:
        UserError: as `fail_together`.
    """
    problem = ""
    try:
        yield
    except Exception as error:  # the system's and libraries' own are told too; all others go on as they are
        found = sentence_of(error)
        if found is None:
            raise
        problem = found
    fail_together(communicator, problem)


def rank_0_first(communicator: Communicator, make: Callable[[], T]) -> T:
    """What `make` gives, made on rank 0 before the others begin: where it leaves files on a disk that all see, they find them.
    A collective.

    However long it takes: meanwhile the ranks meet again and again, so that the patience of a collective counts from the last
    time. It ends all of them where one is gone, or has stopped computing (a disk that does not answer).

    Raises:
        UserError: as `fail_together`.
    """
    made = []
    for is_mine in (communicator.rank == 0, communicator.rank != 0):
        work = _begun(make) if is_mine else None
        while not all(communicator.all_gather_object(work is None or _is_done(work))):
            pass
        with failing_together(communicator):
            if work is not None:
                made.append(work.result())
    return made[0]


def _begun(make: Callable[[], T]) -> Future[T]:
    """In a thread that nobody waits for where this process is to end."""
    work: Future[T] = Future()

    def run() -> None:
        try:
            work.set_result(make())
        except BaseException as error:
            work.set_exception(error)

    threading.Thread(target=run, name="work", daemon=True).start()
    return work


def _is_done(work: Future[T]) -> bool:
    """Says so at once, or after a while that it is not; as long as this process computes nothing, it says nothing."""
    computed = time.process_time()
    while not work.done():
        wait([work], timeout=_PAUSE_SECONDS)
        if time.process_time() - computed > _SIGN_OF_LIFE_SECONDS:
            break
    return work.done()
