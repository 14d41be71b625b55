"""`make demo`: draw a corpus, train on two CPU processes with `deepspeed`, and show what the model learned.

Every number in the table is from the run's own records: before: the untrained model; after: the last step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unimo_ds import recipes
from unimo_ds.run_page import read_run
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command


def main() -> int:
    config = recipes.load("demo")
    train = Path(__file__).with_name("train.py")
    command = [str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--num_accelerators", "2", str(train)]
    print("$", " ".join(["deepspeed", *command[1:4], "unimo_ds/train.py"]), flush=True)
    # On the CPU even if there are GPUs, which may be fewer than two; also avoids DeepSpeed's warning that it found none.
    environment = {"DS_ACCELERATOR": "cpu", **os.environ, "OMP_NUM_THREADS": "1"}
    status = launch(command, environment)
    if status:
        return status
    run_dir = Path(config.run_dir)
    Console(width=100).print(before_and_after(read_run(run_dir).steps, num_pairs=config.evaluation.num_pairs))
    print(f"TensorBoard: .venv/bin/tensorboard --logdir {run_dir / 'tensorboard'}")
    print(f"Checkpoint:  {run_dir / 'checkpoints'}   (unimo evaluate retrieval --checkpoint {run_dir} --help)")
    return 0


def launch(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launcher; returns its exit status. Only the process of `deepspeed` that ends the ranks, which then save, handles
    Ctrl-C; all others, and this one, ignore it (`deepspeed` itself would only print a traceback)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, env=environment, check=False).returncode


def before_and_after(records: Sequence[Mapping[str, Any]], *, num_pairs: int) -> Table:
    """Held-out measurements of the first and the last evaluation, with chance levels where they exist.

    num_pairs: images, with one caption each, among which retrieval chose: chance at R@k is k / num_pairs.
    """
    evaluations = [record for record in records if any(name.startswith("held_out/") for name in record)]
    if len(evaluations) < 2:
        raise UserError("the run holds fewer than two evaluations; remove runs/demo and run `make demo` again")
    steps = [record for record in records if "loss/total" in record]
    first, last = evaluations[0], evaluations[-1]
    table = Table(title=f"Held-out scenes, before and after {last['step']:.0f} steps")
    for name, justify in (("measure", "left"), ("before", "right"), ("after", "right"), ("chance", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in last:
        if name.startswith("held_out/loss/"):
            table.add_row(f"loss: {name.rpartition('/')[2]}", f"{first[name]:.3f}", f"{last[name]:.3f}", "")
    name = "loss/contrastive"
    table.add_row("loss: contrastive (training batch)", f"{steps[0][name]:.3f}", f"{steps[-1][name]:.3f}", "")
    table.add_section()
    for name in last:
        if name.startswith("held_out/retrieval/") and "/r@" in name:
            label = name.removeprefix("held_out/retrieval/").replace("_", " ").replace("/r@", ": R@")
            found_by_chance = int(name.rpartition("@")[2]) / num_pairs
            table.add_row(label, f"{first[name]:.1%}", f"{last[name]:.1%}", f"{found_by_chance:.1%}")
    table.add_section()
    for name in last:
        chance = last.get(f"{name}_chance")
        if name.startswith("held_out/rewrites/") and chance is not None:
            label = "true caption above its " + name.rpartition("/")[2] + " rewrites: " + name.split("/")[2]
            table.add_row(label, f"{first[name]:.1%}", f"{last[name]:.1%}", f"{chance:.1%}")
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
