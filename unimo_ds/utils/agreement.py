"""Makes all ranks fail together, with one message."""

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
"""Between two collectives of the ranks while one of them is working."""
_SIGN_OF_LIFE_SECONDS = 1.0
"""CPU time that shows a rank is working; its idle threads use a few hundredths in a quarter of an hour."""


def fail_together(communicator: Communicator, problem: str) -> None:
    """Return if no rank has a problem. A collective.

    problem: what is wrong on this rank; empty if nothing is.

    Raises:
        UserError: on all ranks, with every rank's problem. Rank 0 has printed it by then: a launcher ends all ranks as soon as
            one exits, so none exits earlier.
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
    """Bad input that any rank finds inside is reported once and ends all ranks. A collective; none may be inside.

    Raises:
        UserError: as `fail_together`.
    """
    problem = ""
    try:
        yield
    except Exception as error:  # errors of the system and libraries are reported too; all others propagate
        found = sentence_of(error)
        if found is None:
            raise
        problem = found
    fail_together(communicator, problem)


def rank_0_first(communicator: Communicator, make: Callable[[], T]) -> T:
    """The result of `make`, called on rank 0 first and then on the others, which find files that rank 0 left on a shared disk.
    A collective.

    `make` may take any time: meanwhile the ranks repeat a short collective, whose timeout counts from the last one. It ends all
    ranks if one is gone or has stopped computing (a disk that does not answer).

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
    """In a daemon thread, which does not keep the process from exiting."""
    work: Future[T] = Future()

    def run() -> None:
        try:
            work.set_result(make())
        except BaseException as error:
            work.set_exception(error)

    threading.Thread(target=run, name="work", daemon=True).start()
    return work


def _is_done(work: Future[T]) -> bool:
    """True as soon as the work is done, False after a pause; does not return while this process uses no CPU time."""
    computed = time.process_time()
    while not work.done():
        wait([work], timeout=_PAUSE_SECONDS)
        if time.process_time() - computed > _SIGN_OF_LIFE_SECONDS:
            break
    return work.done()
