"""Options for the workers of a stage."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

from unimo_ds.data.prepare.journal import alone_in
from unimo_ds.data.prepare.workers import Workers, mpi_workers
from unimo_ds.utils.errors import UserError


def add(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes (default: one per core; one per GPU, or a single one, for a network that makes regions)",
    )
    stage.add_argument(
        "--executor",
        choices=("processes", "mpi"),
        default="processes",
        help="mpi: use the ranks of `mpirun` or `srun`, of which the first directs the others (default: processes)",
    )


def with_workers(
    arguments: argparse.Namespace, folder: Path | None, body: Callable[[Workers], None], *, make: bool = False
) -> int:
    """Run the body with the requested workers. Returns the exit status.

    folder, make: see `journal.alone_in`; folder None: nothing is written.

    Raises:
        UserError: fewer than one worker, unusable MPI, or another stage at work in the folder.
    """
    if arguments.executor == "mpi":
        if arguments.workers is not None:
            raise UserError("--workers is not for --executor mpi; the launcher's number of ranks says it")
        with mpi_workers() as workers:
            if workers is not None:
                _carry_out(body, workers, folder, make)
        return 0
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers} must be at least 1")
    with Workers(arguments.workers) as workers:
        _carry_out(body, workers, folder, make)
    return 0


def _carry_out(body: Callable[[Workers], None], workers: Workers, folder: Path | None, make: bool) -> None:
    with contextlib.nullcontext() if folder is None else alone_in(folder, make=make):
        body(workers)
