"""The Slurm scripts on a real Slurm: a job is signalled before its time limit, then loses a node, and ends with the same bits.

    python -m tests.cluster.rehearsal                    base.sh on 4 nodes and large.sh on 8, one spare node each

base.sh loses the node of rank 0 with all of its processes, large.sh the slurmd of its last node, whose rank lives on alone.

The scripts and their headers are taken as they are. An environment file and arguments after the script's name, which are what a
user has too, put the tiny model on CPU ranks in place of the paper's.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import REPOSITORY, Cluster, wait_until, why_not
from tests.runs import logged
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus
from unimo_ds.utils.launchers import host_names

_STARTING = 900.0
"""Seconds that a start may take on a busy machine: every rank imports torch and DeepSpeed."""
_SETTINGS = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.feed_forward_size": 64,
    "batch.global_samples": 14,
    "schedule.warmup_steps": 2,
    "logging.every_steps": 1,
    "checkpoint.every_steps": 5,
    "evaluation.every_steps": 0,
    "data.num_workers": 0,
}
TINY = ["--recipe", "demo", *(part for key, value in _SETTINGS.items() for part in ("--set", f"{key}={value}"))]


@dataclass(frozen=True)
class Outcome:
    """What a rehearsal has found."""

    script: str
    loss: str
    nodes: int
    ranks: int
    starts: list[int]
    """Step that each start of the disturbed job began at."""
    nodes_of_starts: list[str]
    nodes_excluded: list[str]
    """By the preflight of the undisturbed job."""
    equal_files: bool
    equal_metrics: bool
    seconds_undisturbed: float
    seconds_disturbed: float


def write_environment(path: Path, *, corpus: Path, tasks_per_node: int | None = None) -> Path:
    """The site's file for this machine: CPU ranks, `tasks_per_node` of them instead of one per pretended GPU."""
    text = f"PYTHON={sys.executable}\nDATA={corpus}\n"
    text += f"export PYTHONPATH={REPOSITORY} DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=eth0\n"
    if tasks_per_node is not None:
        ranks = f"$((SLURM_JOB_NUM_NODES * {tasks_per_node}))"
        text += f"SRUN_OPTIONS+=(--ntasks={ranks} --ntasks-per-node={tasks_per_node})\n"
    path.write_text(text)
    return path


def write_corpus(folder: Path) -> Path:
    """Small enough that a run crosses the ends of epochs."""
    write_demo_corpus(folder, num_pairs=80, num_images=20, num_texts=20, num_held_out=8)
    return folder


class Job:
    """One submission of a script, with its log."""

    def __init__(
        self, cluster: Cluster, folder: Path, name: str, *, script: str, sbatch: Sequence[str], total_steps: int
    ) -> None:
        self.cluster, self.run_dir, self.log = cluster, folder / name, folder / f"{name}.log"
        self.total_steps = total_steps
        self.began = time.monotonic()
        self.number = cluster.submit(
            f"--output={self.log}",
            *sbatch,
            f"slurm/{script}",
            *TINY,
            f"--set=schedule.total_steps={total_steps}",
            UNIMO_ENVIRONMENT=str(folder / "environment.sh"),
            RUN_DIR=str(self.run_dir),
        )

    def text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def step(self) -> int:
        """The step last printed by the newest start, 0 before its first."""
        newest = self.text().rpartition(" from ")[2]
        found = re.findall(r"^step (\d+)/", newest, re.MULTILINE)
        return int(found[-1]) if found else 0

    def wait_for_step(self, step: int) -> None:
        wait_until(
            lambda: self.step() >= step or self.cluster.job(self.number)["JobState"] in ("FAILED", "COMPLETED"),
            timeout=_STARTING,
            what=f"step {step} of job {self.number}",
        )

    def finish(self) -> float:
        """Wait for success; returns the seconds since it was submitted."""
        state = self.cluster.wait(self.number, timeout=_STARTING)
        assert state == "COMPLETED", f"{state}\n{self.text()[-6000:]}"
        return time.monotonic() - self.began


def rehearse(
    cluster: Cluster,
    folder: Path,
    *,
    script: str,
    nodes: int,
    tasks_per_node: int,
    total_steps: int,
    sbatch: Sequence[str] = (),
    at_time_limit: bool = True,
    loss: str = "kill-node",
    blind: bool = False,
) -> Outcome:
    """An undisturbed job, then one that is signalled and loses a node; compares what they leave.

    cluster: of at least one node more than the job takes. sbatch: options before the script's name. at_time_limit: the signal
    is that of the script's own --signal line (Slurm takes up to a minute); False: scancel sends it. loss: kill-node takes the
    first node with everything on it, kill-slurmd the slurmd of the last node alone. blind: node1 does not see the data of the
    undisturbed job, which has to go on without that node.

    Raises:
        AssertionError: a job that fails or does not go on.
    """
    corpus = write_corpus(folder / "corpus")
    write_environment(folder / "environment.sh", corpus=corpus, tasks_per_node=tasks_per_node)
    if blind:
        cluster.control("on", "node1", "mount", "-t", "tmpfs", "tmpfs", str(corpus))
    straight = Job(cluster, folder, "straight", script=script, sbatch=sbatch, total_steps=total_steps)
    seconds_undisturbed = straight.finish()
    if blind:
        cluster.control("on", "node1", "umount", str(corpus))

    job = Job(cluster, folder, "disturbed", script=script, sbatch=sbatch, total_steps=total_steps)
    job.wait_for_step(7)
    if at_time_limit:  # with a limit of ten minutes the moment for --signal has come
        cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    else:
        cluster.run("scancel", "--signal=USR1", job.number)
    wait_until(lambda: cluster.job(job.number)["Restarts"] == "1", timeout=300, what="requeue after the signal")
    if at_time_limit:
        cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=600")
    wait_until(lambda: "start 2" in job.text(), timeout=300, what="the second start")
    stopped_at = int(re.findall(r"stopped at step (\d+) \(SIGUSR1\)", job.text())[0])
    job.wait_for_step(stopped_at + 6)
    lost = host_names(cluster.job(job.number)["NodeList"])[0 if loss == "kill-node" else -1]
    cluster.control(loss, lost)
    seconds_disturbed = job.finish()
    last = f"checkpoints/step-{total_steps}"
    names = ("model.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors")
    return Outcome(
        script=script,
        loss=f"{loss} {lost}",
        nodes=nodes,
        ranks=nodes * tasks_per_node,
        starts=[0, *map(int, re.findall(r"resuming from .* at step (\d+)", job.text()))],
        nodes_of_starts=re.findall(r" on (\S+), from", job.text()),
        nodes_excluded=re.findall(r"excluded from now on: (\S+)", straight.text()),
        equal_files=all(
            (straight.run_dir / last / name).read_bytes() == (job.run_dir / last / name).read_bytes() for name in names
        ),
        equal_metrics=logged(straight.run_dir) == logged(job.run_dir)
        and sorted(logged(job.run_dir)) == list(range(1, total_steps + 1)),
        seconds_undisturbed=seconds_undisturbed,
        seconds_disturbed=seconds_disturbed,
    )


def main() -> int:
    """The full rehearsal; prints one line of JSON for each script. Returns 0 where all of it held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each job; Slurm takes up to a minute for its signal")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"no rehearsal: {reason}", file=sys.stderr)
        return 2
    good = True
    for script, nodes, tasks_per_node, loss in (("large.sh", 8, 1, "kill-slurmd"), ("base.sh", 4, 2, "kill-node")):
        with tempfile.TemporaryDirectory(prefix="unimo-rehearsal-") as name:
            folder = Path(name)
            with Cluster(folder / "slurm", nodes + 1, shared=[folder]) as cluster:
                outcome = rehearse(
                    cluster,
                    folder,
                    script=script,
                    nodes=nodes,
                    tasks_per_node=tasks_per_node,
                    total_steps=options.steps,
                    loss=loss,
                )
        print(json.dumps(vars(outcome)), flush=True)
        good &= outcome.equal_files and outcome.equal_metrics and len(outcome.starts) == 3
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
