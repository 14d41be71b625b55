"""Fraction of the time that a run trains if it is killed once in a hundred steps, and what each kill costs.

    OMP_NUM_THREADS=1 python -m benchmarks.kills --run-dir runs/killed                               torchrun
    OMP_NUM_THREADS=1 python -m benchmarks.kills --run-dir runs/killed --launcher mpirun --every 10

The demo recipe on two ranks; its corpus is drawn once if it is missing. All processes get SIGKILL at once, including launcher
and loader workers, and the same command starts again at once. `training_share` is that of `unimo inspect RUN --html`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

from unimo_ds.data.prepare.scenes.writing import write_demo_corpus
from unimo_ds.run_page import read_run, summary
from unimo_ds.utils import records
from unimo_ds.utils.launchers import free_port

_POLL = 0.1


def launcher(name: str) -> list[str]:
    """The command before the trainer's module."""
    beside = str(Path(sys.executable).with_name(name))
    if name == "torchrun":
        return [beside, "--standalone", "--nproc-per-node=2", "-m"]
    if name == "deepspeed":
        return [beside, "--num_accelerators=2", f"--master_port={free_port()}", "--module"]
    return [beside, "-n", "2", "--oversubscribe", "--allow-run-as-root", sys.executable, "-m"]


def last_step(run_dir: Path) -> int:
    """The newest recorded step, 0 before the first."""
    found = records.read(run_dir / records.METRICS_FILE)
    return max((record.step for record in found if not record.event), default=0)


def kill_family(family: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a launcher and all its descendants; returns when they are gone."""
    members = [psutil.Process(family.pid), *psutil.Process(family.pid).children(recursive=True)]
    for member in members:
        member.kill()
    family.wait()
    psutil.wait_procs(members)


def main() -> int:
    """Prints one line of JSON. Returns the last start's status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="a new one")
    parser.add_argument("--data", type=Path, default=Path("demo_data"))
    parser.add_argument("--launcher", choices=("torchrun", "deepspeed", "mpirun"), default="torchrun")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--every", type=int, help="steps between checkpoints (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_demo_corpus(options.data)
    chance = random.Random(options.seed)
    kills = [100 * number + chance.randrange(10, 90) for number in range(options.kills)]
    settings = ["evaluation.every_steps=0", "logging.every_steps=1", f"schedule.total_steps={100 * options.kills}"]
    settings += [f"checkpoint.every_steps={options.every}"] if options.every else []
    arguments = ["--recipe", "demo", "--data", str(options.data), "--run-dir", str(options.run_dir)]
    arguments += [part for setting in settings for part in ("--set", setting)]
    lost = []
    for kill in [*kills, None]:
        command = [*launcher(options.launcher), "unimo_ds.train", *arguments]
        with options.run_dir.with_suffix(".log").open("a") as log:
            family = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while family.poll() is None and (kill is None or last_step(options.run_dir) < kill):
            time.sleep(_POLL)
        if kill is not None:
            lost.append({"step": last_step(options.run_dir), "time": time.time()})
            kill_family(family)
    run = read_run(options.run_dir)
    for one in lost:
        after = [line for line in run.steps if line["time"] > one["time"]]
        one["resumed_from"] = int(after[0]["step"]) - 1
        one["seconds_to_next_step"] = round(after[0]["time"] - one.pop("time"), 1)
    print(json.dumps({"launcher": options.launcher, "kills": lost, **summary(run)}))
    return family.returncode


if __name__ == "__main__":
    sys.exit(main())
