"""Options that say who does the work of a stage."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from unimo_ds.data.prepare.workers import Workers, mpi_workers
from unimo_ds.utils.errors import UserError


def add(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--workers", type=int, help="processes (default: one per core; for a detector one per GPU, or one alone)"
    )
    stage.add_argument(
        "--executor",
        choices=("processes", "mpi"),
        default="processes",
        help="mpi: the ranks of `mpirun` or `srun`, the first of which directs (default: processes)",
    )


def with_workers(arguments: argparse.Namespace, body: Callable[[Workers], None]) -> int:
    """Carry out the body with the workers asked for. Returns the exit status.

    Raises:
        UserError: a number of workers below one, or MPI that cannot be used.
    """
    if arguments.executor == "mpi":
        if arguments.workers is not None:
            raise UserError("--workers is not for --executor mpi; the launcher's number of ranks says it")
        with mpi_workers() as workers:
            if workers is not None:
                body(workers)
        return 0
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers} must be at least 1")
    with Workers(arguments.workers) as workers:
        body(workers)
    return 0
