"""Start real groups of processes from a test, and never leave one behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from unimo_ds.utils.launchers import free_port

LAUNCHER_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def torchrun(processes: int) -> list[str]:
    return [
        sys.executable,
        *("-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())),
    ]


def deepspeed(processes: int) -> list[str]:
    return [
        sys.executable,
        *("-m", "deepspeed.launcher.runner", "--num_accelerators", str(processes), "--master_port", str(free_port())),
    ]


def mpirun(processes: int) -> list[str]:
    """Containers and CI run as root, which Open MPI wants to be told."""
    return [
        str(Path(sys.executable).with_name("mpirun")),
        *("-n", str(processes), "--oversubscribe", "--allow-run-as-root"),
        sys.executable,
    ]


@contextlib.contextmanager
def started(command: list[str], *, output: IO[str] | int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A launcher with its whole family in a process group of its own, killed on leaving."""
    environment = {
        # Tests that made a process group of their own leave its place in it behind.
        **{name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES},
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Workers import what tests share.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    family = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        yield family
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(family.pid, signal.SIGKILL)
        family.wait()


def launch(
    script: Path,
    arguments: list[str],
    *,
    processes: int,
    timeout: float = 600.0,
    launcher: Callable[[int], list[str]] = torchrun,
) -> str:
    """Run `script` in `processes` ranks and return what they printed; fail with it if they do."""
    with started([*launcher(processes), str(script), *arguments]) as family:
        output, _ = family.communicate(timeout=timeout)
    assert family.returncode == 0, f"exit status {family.returncode}:\n{output[-6000:]}"
    return output


def processes_of_rank(launcher: int, rank: int) -> list[int]:
    """Process ids of one rank below a launcher, its loader workers included."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for process in parents:
        ancestor: int | None = process
        while ancestor is not None and ancestor != launcher:
            ancestor = parents.get(ancestor)
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if ancestor == launcher and f"RANK={rank}".encode() in variables:
                found.append(process)
    return found
