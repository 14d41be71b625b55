"""Two ranks: the second begins an all-reduce and fails (`failing_worker.py user|bug`); the first is busy for an hour."""

from __future__ import annotations

import sys
import time

import torch

from unimo_ds.engine.launch import start_processes
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command


def main() -> int:
    start_processes()
    ones = torch.ones(1000)
    torch.distributed.all_reduce(ones)
    if torch.distributed.get_rank() == 0:
        time.sleep(3600)
    torch.distributed.all_reduce(ones, async_op=True)
    raise UserError("bad input of one rank") if sys.argv[1] == "user" else RuntimeError("a bug on one rank")


if __name__ == "__main__":
    sys.exit(run_command(main))
