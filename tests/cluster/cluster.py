"""A real Slurm on this machine for as long as a test lasts: see mini-slurm.sh, of which this is the Python side."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

SCRIPT = Path(__file__).with_name("mini-slurm.sh")
REPOSITORY = Path(__file__).parents[2]
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "nsenter", "ip")


def why_not() -> str:
    """Why no cluster can be made here; empty where one can."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here (tests/cluster/mini-slurm.sh install)"
    if os.geteuid() != 0:
        return "namespaces of their own for the nodes need root"
    probe = subprocess.run(
        ["unshare", "-n", "-u", "-i", "-p", "-m", "--fork", "ip", "link", "add", "probe", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces or bridges are not allowed here ({probe.stderr.strip()})" if probe.returncode else ""


class Cluster:
    """Context manager: `num_nodes` nodes with eight pretended V100s each, and a controller.

    shared: folders below /tmp that all nodes see; each node has a /tmp of its own otherwise.
    """

    def __init__(self, folder: Path, num_nodes: int, *, shared: Sequence[Path] = ()) -> None:
        self.folder, self.num_nodes = folder, num_nodes
        self._environment = {
            **os.environ,
            "MINI_SLURM_DIR": str(folder),
            "MINI_SLURM_SHARED": ":".join(map(str, [REPOSITORY, *shared])),
            "MINI_SLURM_TTL": "7200",
            "MINI_SLURM_REQUEUE_DELAY": "10",  # less is not taken, and means two minutes
            "MINI_SLURM_SLURMD_TIMEOUT": "10",
        }

    def __enter__(self) -> Self:
        try:
            self.control("up", str(self.num_nodes), timeout=120)
        except subprocess.CalledProcessError:
            self.control("down")
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.control("down")

    def control(self, *words: str, timeout: float = 60.0, **variables: str) -> str:
        """One command of mini-slurm.sh; returns what it printed."""
        done = subprocess.run(
            ["bash", str(SCRIPT), *words],
            cwd=REPOSITORY,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, *command: str, **variables: str) -> str:
        """A command on the login host, such as scontrol."""
        return self.control("exec", *command, **variables)

    def submit(self, *arguments: str, **variables: str) -> str:
        """sbatch from the repository's root; returns the job's number."""
        return self.run("sbatch", "--parsable", *arguments, **variables).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, NodeList, ..."""
        text = self.run("scontrol", "-o", "show", "job", number)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def wait(self, number: str, *, timeout: float) -> str:
        """The job's last state."""
        return self.control("wait", number, str(int(timeout)), timeout=timeout + 30).strip().removeprefix("JobState=")


def wait_until(condition: Callable[[], bool], *, timeout: float, what: str, every: float = 0.2) -> None:
    """Poll until `condition()`, once in `every` seconds.

    Raises:
        AssertionError: not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)
