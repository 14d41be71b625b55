"""Two ranks that are done while gloo's threads still hold tensors of their last collective (`ending_worker.py STATUS`)."""

from __future__ import annotations

import atexit
import importlib
import os
import sys

import torch

from unimo_ds.engine.launch import start_processes
from unimo_ds.utils.running import run_command


def main() -> int:
    if sys.argv[2:] == ["with MPI"]:
        importlib.import_module("mpi4py.MPI")
    start_processes()
    kept.append(torch.distributed.group.WORLD)  # as DeepSpeed does: its threads outlive the group
    os.environ["SLOW_MICROSECONDS"] = "300000"
    torch.distributed.all_gather_object([None, None], "done")
    # From here on a thread that wants Python's lock waits, until it is too late.
    sys.setswitchinterval(100.0)
    return int(sys.argv[1])


kept: list[object] = []

if __name__ == "__main__":
    atexit.register(lambda: sum(range(100_000_000)))
    sys.exit(run_command(main))
