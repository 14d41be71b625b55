"""`unimo finetune TASK`: train on a task's official files with several seeds, one after another, and join the results.

Running the command again resumes. Several processes: `torchrun --nproc-per-node N -m unimo_ds finetune TASK ...`, or `deepspeed
--module unimo_ds finetune TASK ...`, `mpirun`, `srun`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from unimo_ds.engine.launch import start_processes
from unimo_ds.finetune import reads, results, tasks
from unimo_ds.finetune.arguments import check
from unimo_ds.finetune.run import Order, finetune
from unimo_ds.finetune.start import read_start
from unimo_ds.utils.communicator import make_communicator
from unimo_ds.utils.whole_file import write_whole

RESULTS_FILE = "results.json"


def run(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Returns the exit status and the results of all seeds; no results if the run stopped early, and on ranks other than 0.

    Raises:
        UserError: bad input.
    """
    read = functools.cache(lambda: _read_order(arguments))
    found: list[dict[str, Any]] = []
    for seed in range(max(1, arguments.seeds)):  # the first start reports bad input, on all ranks
        status, result = finetune(read, seed=seed)
        if result is None:
            return status, {}
        found.append(dataclasses.asdict(result))
    order, communicator = read(), make_communicator(start_processes())
    joined = {
        "task": order.task.name,
        "recipe": arguments.recipe,
        "checkpoint": str(arguments.checkpoint),
        "from_scratch": arguments.from_scratch,
        "overrides": list(arguments.set),
        "split": "dev",
        "best_metric": order.task.best_metric,
        "metrics": results.join_seeds(found),
        "seeds": found,
        "world_size": communicator.world_size,
    }
    if communicator.rank == 0:
        write_whole(order.run_dir / RESULTS_FILE, (json.dumps(joined, indent=2) + "\n").encode())
    return 0, joined if communicator.rank == 0 else {}


def _read_order(arguments: argparse.Namespace) -> Order:
    """
    Raises:
        UserError: an unknown task, a bad checkpoint, or options that do not fit.
    """
    check(arguments)
    task = tasks.load(arguments.task)
    reads.check_task(arguments.set, task.reads, task=task.name)
    return Order(
        task=task,
        size=arguments.recipe,
        data=arguments.data,
        run_dir=arguments.run_dir or Path("runs") / "finetune" / task.name,
        start=read_start(arguments.checkpoint, tokenizer=arguments.tokenizer),
        from_scratch=arguments.from_scratch,
        overrides=tuple(arguments.set),
    )


def to_text(result: dict[str, Any]) -> str:
    """A table for people."""
    count = len(result["seeds"])
    several = "s: mean ± half of its 95 % interval (smallest to largest)" if count > 1 else ""
    lines = [f"{result['task']} ({result['recipe']}), {result['split']}, values x 100, {count} seed{several}"]
    for name, values in result["metrics"].items():
        # Ranks are numbers, everything else is a fraction.
        scale = 1 if name.endswith("rank") else 100
        spread = ""
        if values["confidence_95"] is not None:
            span = f"{scale * values['min']:.2f} to {scale * values['max']:.2f}"
            spread = f" ± {scale * values['confidence_95']:.2f}   ({span})"
        lines.append(f"  {name:<28} {scale * values['mean']:9.2f}{spread}")
    notes = {name: text for one in result["seeds"] for name, text in one["notes"].items()}
    return "\n".join([*lines, *(f"  {name}: {text}" for name, text in notes.items())])
