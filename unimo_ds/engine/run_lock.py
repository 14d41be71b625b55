"""The lock of a run directory: two trainers in one would damage each other's records and checkpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from unimo_ds.engine.patient_files import say

FILE = ".lock"
_POLL_SECONDS = 1.0
_held_locks: list[IO[str]] = []
"""Kept open until the process ends."""


def lock(run_dir: Path, *, patience: float) -> str:
    """Lock the directory until the process ends; returns the holder if another process has the lock, else "".

    Slurm requeues a job whose node stopped responding, while that node may still run its tasks. Those end by themselves,
    `engine.hang_minutes` after their last step at the latest: wait up to `patience` seconds for an earlier start of this job.
    """
    file = (run_dir / FILE).open("a+")
    job = os.environ.get("SLURM_JOB_ID")
    mine = f" of Slurm job {job}" if job else ""
    deadline, is_waiting = time.monotonic() + patience, False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # Lustre without `flock`, NFS without its lock daemon
                say(
                    f"warning: {run_dir} is on a file system without locks ({error.strerror}); see that no other run uses it"
                )
                return ""
            holder = _holder(run_dir / FILE)
            if not mine or not holder.endswith(mine) or time.monotonic() > deadline:
                return holder
            if not is_waiting:
                say(f"{run_dir} is in use by {holder}: waiting for it for up to {patience / 60:.0f} minutes")
                is_waiting = True
            time.sleep(_POLL_SECONDS)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{mine}\n")
    file.flush()
    _held_locks.append(file)
    return ""


def _holder(lock: Path) -> str:
    """Who holds a lock. Never ask for one's own: closing any descriptor of a file releases its locks."""
    return lock.read_text().strip() or "another process"


def hold(run_dir: Path) -> str:
    """Go on holding the directory, whose lock is gone if it was deleted; returns the holder if another trainer has begun in its
    place since, else "". May raise OSError."""
    path = run_dir / FILE
    mine = [os.fstat(file.fileno()) for file in _held_locks if Path(file.name) == path]
    if not mine:  # on a file system without locks
        return ""
    try:
        there = path.stat()
    except FileNotFoundError:
        run_dir.mkdir(parents=True, exist_ok=True)
        return lock(run_dir, patience=0.0)
    return "" if any(os.path.samestat(there, one) for one in mine) else _holder(path)
