"""Ranks that fail together, with one sentence for all of them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import ToldError, UserError, tell

T = TypeVar("T")


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
    except UserError as error:
        problem = str(error)
    fail_together(communicator, problem)


def rank_0_first(communicator: Communicator, make: Callable[[], T]) -> T:
    """What `make` gives, made on rank 0 before the others begin: where it leaves files on a disk that all see, they find them.

    Raises:
        UserError: as `fail_together`.
    """
    made = []
    for is_mine in (communicator.rank == 0, communicator.rank != 0):
        with failing_together(communicator):
            if is_mine:
                made.append(make())
    return made[0]
