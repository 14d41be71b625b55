"""Weights & Biases. Needs `WANDB_API_KEY` or `wandb login`; `WANDB_MODE=offline` writes RUN/wandb, for `wandb sync` later.

The library counts its calls of `log` as steps and accepts no smaller ones; ours is logged as a metric, which `define_metric`
makes the axis of the others. A step that is repeated after a resume appears again, the later value last.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.engine.trackers.protocol import TrackedRun
from unimo_ds.utils.errors import EXIT_REQUEUE

REQUIREMENT = "wandb==0.31.0"
_SETTINGS = {
    "silent": True,  # neither questions on a terminal nor a table of all numbers at the end
    "console": "off",
    # Command line, machine and code changes may contain secrets; RUN/environment.json has them without.
    "x_disable_meta": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "init_timeout": 30.0,
    "finish_timeout": 30.0,
    "finish_timeout_raises": True,
}
_SERVICE = "wandb-core"


def open_run(run: TrackedRun) -> WandbRun:
    """Online, or as WANDB_MODE says; offline if the service cannot be reached."""
    import wandb

    wanted: dict[str, Any] = {
        "id": run.id,
        "resume": "allow",
        "name": run.name,
        "group": run.group,
        "project": os.environ.get("WANDB_PROJECT") or run.project,
        "dir": str(run.folder),
        "config": run.config,
    }
    wandb.setup(wandb.Settings(**_SETTINGS))
    try:
        opened = wandb.init(**wanted)
    except wandb.errors.CommError as error:
        wandb.teardown(1)
        wandb.setup(wandb.Settings(**_SETTINGS, mode="offline"))
        opened = wandb.init(**wanted)
        reason = str(error).partition("\n")[0]
        run.say(
            f"warning: wandb is not reached ({reason}); `wandb sync {run.folder}/wandb/offline-run-*` sends the run later"
        )
    if opened.url:
        run.say(f"wandb: {opened.url}")
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")
    return WandbRun(opened)


def abandon() -> None:
    """Kill the library's own process: while it runs, an exit hook waits for it."""
    for process in _children():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/comm").read_text().strip() == _SERVICE:
                os.kill(process, signal.SIGKILL)


class WandbRun:
    """A W&B run, open in this process."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def show(self, step: int, pictures: Sequence[NDArray[np.uint8]]) -> None:
        import wandb

        self._run.log(
            {"step": step, **{f"retrieved/{number}": wandb.Image(one) for number, one in enumerate(pictures)}}
        )

    def finish(self, status: int) -> None:
        """A run that will be requeued is marked as preempted, not failed."""
        import wandb

        try:
            if status == EXIT_REQUEUE:
                self._run.mark_preempting()
            self._run.finish(exit_code=status)
        finally:
            wandb.teardown(status)  # not left to exit hooks: ranks exit with os._exit


def _children() -> list[int]:
    """Child processes, started by any thread of this process."""
    found = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(one) for one in file.read_text().split()]
    return found
