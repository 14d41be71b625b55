"""The files of a run beside its checkpoints, and the check that a configuration may continue it.

config.json  deepspeed.json  environment.json  starts.jsonl  metrics.jsonl  tensorboard/  checkpoints/  tracker_id  wandb/
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig, ScheduleConfig, fingerprint, to_dict
from unimo_ds.engine import checkpoint_folder, run_lock
from unimo_ds.utils import strict_json
from unimo_ds.utils.agreement import fail_together
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import NO_ROOM, UserError
from unimo_ds.utils.machine import describe_machine
from unimo_ds.utils.records import METRICS_FILE
from unimo_ds.utils.redact import redacted
from unimo_ds.utils.whole_file import replace_file

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
_FREE = (
    "recipe",
    "run_dir",
    "engine.",
    "spikes.",
    "checkpoint.",
    "evaluation.",
    "logging.",
    "schedule.",
    "optimizer.peak_learning_rate",
    "optimizer.clip_norm",
    "model.initialize_from",
    "model.initialize_images_from",
    # The starting weights of a fine-tuning are compared by content (finetune/start.py).
    "finetune.start",
    # Data may move but not change: its fingerprint is compared.
    "model.patch_columns",
    "data.path",
    "data.made_with.",
    "data.held_out_path",
    "data.num_workers",
    "data.prefetch_steps",
    "data.max_bad_share",
    "data.cache_dir",
    "data.cache_bytes",
    "batch.micro_batch_tokens",
)
"""Keys (and groups, with a dot) in which a continued run may differ from its start."""
_OFF = {"data.smallest_crop": 1.0, "schedule.decay_share": ScheduleConfig.decay_share}
_TABLES = ("data.source_weights.", "optimizer.rate_factors.")
"""Tables whose entries a user names: here 0 differs from no entry."""
_PACKAGES = ("torch", "deepspeed", "numpy", "safetensors", "tokenizers", "transformers", "webdataset")


def prepare(
    config: RunConfig,
    ds_config: Mapping[str, Any],
    *,
    data_fingerprint: str,
    held_out_fingerprint: str = "",
    communicator: Communicator,
    command: Sequence[str] = tuple(sys.argv),
) -> None:
    """Make the run directory or check that `config` continues the run in it. A collective; rank 0 does the work.

    Raises:
        UserError: on all ranks: not writable, the run there has another model, seed or data (the message names it), or
            ranks differ from each other in these.
    """
    run_dir = Path(config.run_dir)
    equal = {
        "its command or code": fingerprint(config),
        f"data.path={config.data.path!r}": data_fingerprint,
        f"data.held_out_path={config.data.held_out_path!r}": held_out_fingerprint,
    }
    of_ranks = communicator.all_gather_object((describe_machine(), equal))
    machines = [machine for machine, _ in of_ranks]
    problem = _disagreement(of_ranks)
    if communicator.rank == 0 and not problem:
        try:
            problem = _prepare(run_dir, config, ds_config, data_fingerprint, machines, command)
        except OSError as error:
            has_room = error.errno not in NO_ROOM
            cure = "give another --run-dir" if has_room else "make room and give the same command again"
            problem = f"cannot write to {run_dir}: {error.strerror}; {cure}"
    fail_together(communicator, problem)


def _disagreement(of_ranks: Sequence[tuple[Mapping[str, Any], Mapping[str, str]]]) -> str:
    """An error message if ranks differ: training with different copies of data or code would raise no error."""
    _, first = of_ranks[0]
    for rank, (machine, mine) in enumerate(of_ranks):
        if differing := sorted(name for name in first if mine.get(name) != first[name]):
            return (
                f"rank {rank} on {machine['host']} differs from rank 0 in {', '.join(differing)}; make all copies equal"
            )
    return ""


def differing_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, except those that may differ."""
    old, new = flatten(before), flatten(after)
    return sorted(
        key
        for key in old.keys() | new.keys()
        if differs(old, new, key)
        and not any(key.startswith(free) if free.endswith(".") else key == free for free in _FREE)
    )


def differs(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    """Whether a setting has a different value now. A key that `old` lacks (newer code) does not differ if it is off (0,
    false, none, empty, or its value in `_OFF`), unless it is an entry of a table."""
    is_off = key in new and (not new[key] or new[key] == _OFF.get(key)) and not key.startswith(_TABLES)
    return old.get(key) != new.get(key) and (key in old or not is_off)


def _prepare(
    run_dir: Path,
    config: RunConfig,
    ds_config: Mapping[str, Any],
    data_fingerprint: str,
    machines: Sequence[Mapping[str, Any]],
    command: Sequence[str],
) -> str:
    if (run_dir / "manifest.json").is_file():
        return f"{run_dir} is a data folder; give another --run-dir"
    run_dir.mkdir(parents=True, exist_ok=True)
    if holder := run_lock.lock(run_dir, patience=60.0 * config.engine.hang_minutes + 60.0):
        return f"{run_dir} is in use by {holder}; wait for it, stop it, or give another --run-dir"
    environment = {"data_fingerprint": data_fingerprint, **describe_environment()}
    path = run_dir / CONFIG_FILE
    if not path.is_file() and _has_numbers(run_dir):
        return f"{run_dir} holds a run whose {path.name} is gone; restore it or give another --run-dir"
    if path.is_file() and not _is_unused(run_dir):
        problem = _differences(path, run_dir / ENVIRONMENT_FILE, config, data_fingerprint)
        if problem:
            return problem
    _write(path, redacted(to_dict(config)))
    _write(run_dir / "deepspeed.json", ds_config)
    _write(run_dir / ENVIRONMENT_FILE, environment)
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "world_size": len(machines),
        "machines": _together(machines),
        "command": redacted(list(command)),
        **environment,
    }
    with (run_dir / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")
    return ""


def _is_unused(run_dir: Path) -> bool:
    """Whether earlier starts produced nothing (refused by the optimizer, out of memory), so that settings may change."""
    checkpoints = run_dir / checkpoint_folder.FOLDER
    has_checkpoints = checkpoints.is_dir() and any(checkpoints.iterdir())
    # A config.json that does not belong to a run has no such file beside it.
    return (run_dir / ENVIRONMENT_FILE).is_file() and not _has_numbers(run_dir) and not has_checkpoints


def _has_numbers(run_dir: Path) -> bool:
    metrics = run_dir / METRICS_FILE
    return metrics.is_file() and metrics.stat().st_size > 0


def _together(machines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each machine once, with its number of ranks. machines: one entry per rank. A rank may see only one of its GPUs."""
    found: dict[str, dict[str, Any]] = {}
    for machine in machines:
        one = found.setdefault(machine["host"], {**machine, "ranks": 0})
        one["ranks"] += 1
    return list(found.values())


def recipe_in(run_dir: str) -> str | None:
    """The recipe of the run that a folder holds; None: it holds none that can be read."""
    try:
        recipe = strict_json.read(Path(run_dir) / CONFIG_FILE, dict[str, Any], cure="").get("recipe")
    except UserError:
        return None
    return recipe if isinstance(recipe, str) else None


def _differences(path: Path, environment: Path, config: RunConfig, data_fingerprint: str) -> str:
    try:
        before = strict_json.read(path, dict[str, Any], cure=(cure := "restore it or give another --run-dir"))
        data_before = data_fingerprint
        if environment.is_file():
            data_before = strict_json.read(environment, dict[str, Any], cure=cure).get("data_fingerprint")
    except UserError as error:
        return str(error)
    old, new = flatten(before), flatten(to_dict(config))
    keys = differing_keys(before, to_dict(config))
    if keys:
        shown = ", ".join(f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in keys[:5])
        return f"{path.parent} holds a run that differs in {shown}; give the same settings to continue it, or another --run-dir"
    if data_before != data_fingerprint:
        return (
            f"{path.parent} holds a run on other data than data.path={config.data.path!r} (data.path={old.get('data.path')!r} "
            "there); give that data, several folders in the same order, or another --run-dir"
        )
    return ""


def describe_environment() -> dict[str, Any]:
    """Versions, code revision, machine, and the folder to which relative paths of the configuration refer."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "revision": _revision(),
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "directory": os.getcwd(),
    }


def _revision() -> str:
    """Git commit of the code, with `+changes` if files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        command, folder = ["git", *words], Path(__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        commit, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+changes" if changes else "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys; an empty table gives none."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write(path: Path, values: Mapping[str, Any]) -> None:
    replace_file(path, json.dumps(values, indent=2) + "\n")
