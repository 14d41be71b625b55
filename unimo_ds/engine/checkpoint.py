"""Checkpoints that appear whole or not at all, are checked before they are trusted, and load at any world size and stage.

    checkpoints/.tmp-step-N/   being written          checkpoints/step-N/   complete: files, state.json, manifest.json
    checkpoints/latest         text `step-N`, moved last         checkpoints/best     the one with the best evaluation

Rank 0 writes and checks; every verdict is shared, so that all ranks go on or stop together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.config import CheckpointConfig, RunConfig, fingerprint, to_dict
from unimo_ds.engine import state
from unimo_ds.engine.setup import Engine
from unimo_ds.engine.state import OptimizerNumbers, Progress
from unimo_ds.utils.errors import UserError

FOLDER = "checkpoints"
LATEST = "latest"
BEST = "best"
MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
_COMPLETE = re.compile(r"step-(\d+)")
_SPARE_BYTES = 16 * 2**20


class CheckpointError(UserError):
    """A checkpoint could not be written; earlier ones are untouched."""


@dataclass(frozen=True)
class Loaded:
    """What a run resumes from."""

    folder: Path
    progress: Progress


def save(engine: Engine, run_dir: Path, progress: Progress, config: RunConfig) -> Path:
    """Write `checkpoints/step-N` for the steps taken so far, then prune. A collective.

    Raises:
        CheckpointError: on all ranks, where rank 0 could not write; what was there before is still there.
    """
    communicator = engine.communicator
    checkpoints = run_dir / FOLDER
    temporary = checkpoints / f".tmp-step-{progress.step}"
    final = checkpoints / f"step-{progress.step}"
    problem = communicator.broadcast_object(_begin(temporary, engine) if communicator.rank == 0 else "")
    if problem:
        raise CheckpointError(problem)
    numbers = state.read_numbers(engine)
    entries, failure = state.write_tensors(engine, temporary)
    if communicator.rank == 0:
        try:
            if failure is not None:
                raise failure
            entries[STATE] = _write_json(temporary / STATE, _describe(engine, progress, numbers, config))
            _write_json(temporary / MANIFEST, {"format": FORMAT, "files": entries})
            _appear(temporary, final)
            _point(checkpoints, LATEST, final.name)
            if progress.best is not None and progress.best.step == progress.step:
                _point(checkpoints, BEST, final.name)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            problem = (
                f"cannot write the checkpoint {final}: {error}; {_space(checkpoints, engine)}; earlier ones are intact"
            )
    problem = communicator.broadcast_object(problem)
    if problem:
        raise CheckpointError(problem)
    if communicator.rank == 0:
        # An older folder that will not go away is no reason to doubt the new one.
        with contextlib.suppress(OSError):
            _prune(checkpoints, config.checkpoint, progress)
    return final


def load(engine: Engine, run_dir: Path, config: RunConfig, *, say: Callable[[str], None] = print) -> Loaded | None:
    """Resume from the newest good checkpoint. A collective. None where the run has no checkpoint at all: a fresh start.

    Raises:
        UserError: on all ranks, where checkpoints exist but none is good, or the good one is of another model.
    """
    communicator = engine.communicator
    choice: tuple[str, str, Any] = ("", "", None)
    if communicator.rank == 0:
        try:
            choice = _choose(run_dir / FOLDER, say)
        except OSError as error:  # the other ranks wait for a verdict
            choice = "", f"cannot look through {run_dir / FOLDER}: {error}", None
    name, problem, described = communicator.broadcast_object(choice)
    if problem:
        raise UserError(problem)
    if not name:
        return None
    folder = run_dir / FOLDER / name
    _check_same_model(described, config, folder)
    state.read_tensors(engine, folder)
    state.write_numbers(engine, OptimizerNumbers(**described["optimizer"]))
    return Loaded(folder, Progress.from_dict(described["progress"]))


def completed_steps(run_dir: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end, in rising order (unchecked)."""
    return sorted(
        int(match[1])
        for folder in (run_dir / FOLDER).glob("step-*")
        if (match := _COMPLETE.fullmatch(folder.name)) and (folder / MANIFEST).is_file()
    )


def problems_of(folder: Path) -> list[str]:
    """What is wrong with a checkpoint: missing or cut files, changed bytes. Empty for a good one."""
    try:
        manifest = _read_json(folder / MANIFEST)
        entries = manifest["files"].items() if manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{folder / MANIFEST} is unreadable ({error})"]
    if entries is None:
        return [f"{folder / MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"]
    problems = [f"{folder / name} is not listed" for name in state.FILES.values() if name not in manifest["files"]]
    for name, entry in entries:
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                problems.append(f"{path} has {size} bytes instead of {entry['bytes']}")
            elif _sha256(path) != entry["sha256"]:
                problems.append(f"{path} has changed since it was written (SHA-256 differs)")
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror})")
    return problems


def _begin(temporary: Path, engine: Engine) -> str:
    """Make the empty folder to write into. Returns what is wrong, if anything."""
    checkpoints = temporary.parent
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        return f"cannot make {temporary}: {error.strerror}; free space or give another run_dir"
    try:
        free = shutil.disk_usage(checkpoints).free
    except OSError as error:  # the other ranks wait for a verdict
        return f"cannot look at {checkpoints}: {error.strerror}; free space or give another run_dir"
    if free < state.state_bytes(engine) + _SPARE_BYTES:
        shutil.rmtree(temporary, ignore_errors=True)
        return f"no room for a checkpoint in {checkpoints}: {_space(checkpoints, engine)}; earlier ones are intact"
    return ""


def _space(checkpoints: Path, engine: Engine) -> str:
    free = shutil.disk_usage(checkpoints).free
    return f"{free:,} bytes are free and {state.state_bytes(engine) + _SPARE_BYTES:,} are needed"


def _describe(engine: Engine, progress: Progress, numbers: OptimizerNumbers, config: RunConfig) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "progress": progress.to_dict(),
        "optimizer": dataclasses.asdict(numbers),
        "data_position": progress.step * config.batch.global_samples,
        "seed": config.seed,
        "configuration_fingerprint": fingerprint(config),
        "model": to_dict(config.model),
        "world_size": engine.communicator.world_size,
        "zero_stage": engine.zero_stage,
    }


def _check_same_model(described: dict[str, Any], config: RunConfig, folder: Path) -> None:
    mine = to_dict(config.model)
    # Where the weights came from and how much of them is dropped may change; what the tensors are may not.
    free = {"initialize_from", "hidden_dropout", "attention_dropout"}
    differing = sorted(key for key in mine.keys() - free if described["model"].get(key) != mine[key])
    if differing:
        key = differing[0]
        raise UserError(
            f"{folder} is of another model: model.{key} is {described['model'].get(key)} in it and {mine[key]} in this run; "
            "give the configuration it was made with or another run_dir"
        )


def _appear(temporary: Path, final: Path) -> None:
    """Make a complete folder visible in one step. An older one of the same name stays until then."""
    _sync_folder(temporary)
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _point(checkpoints: Path, pointer: str, name: str) -> None:
    temporary = checkpoints / f".{pointer}"
    with temporary.open("w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(checkpoints / pointer)
    _sync_folder(checkpoints)


def _pointed(pointer: Path) -> str:
    """The name in a pointer file; empty where there is none."""
    return pointer.read_text().strip() if pointer.is_file() else ""


def _prune(checkpoints: Path, config: CheckpointConfig, progress: Progress) -> None:
    steps = completed_steps(checkpoints.parent)
    kept = set(steps[-config.keep_last :]) | {progress.step}
    if config.keep_every:
        kept |= {step for step in steps if step % config.keep_every == 0}
    best = _pointed(checkpoints / BEST)
    kept |= {step for step in steps if f"step-{step}" == best}
    for step in set(steps) - kept:
        # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
        trash = checkpoints / f".trash-step-{step}"
        (checkpoints / f"step-{step}").rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _choose(checkpoints: Path, say: Callable[[str], None]) -> tuple[str, str, Any]:
    """Name of the newest good checkpoint (empty: there never was one), what is wrong, if anything, and its state.json."""
    if not checkpoints.is_dir():
        return "", "", None
    _tidy(checkpoints)
    names = sorted(
        (item.name for item in checkpoints.iterdir() if _COMPLETE.fullmatch(item.name)),
        key=lambda name: int(name.removeprefix("step-")),
        reverse=True,
    )
    pointer = checkpoints / LATEST
    named = pointer.read_text().strip() if pointer.is_file() else ""
    if named and not names:
        text = f"{pointer} names {named!r}, but there is no checkpoint beside it; restore it or give another run_dir"
        return "", text, None
    for name in names:
        problems = problems_of(checkpoints / name)
        if not problems:
            if name != named:
                say(f"resuming from {name}, though {pointer} says {named or 'nothing'!r}")
                _point(checkpoints, LATEST, name)
            return name, "", _read_json(checkpoints / name / STATE)
        say(f"skipping a damaged checkpoint: {'; '.join(problems)}")
    if names:
        return (
            "",
            f"no checkpoint in {checkpoints} is good ({len(names)} damaged); restore one or give another run_dir",
            None,
        )
    return "", "", None


def _tidy(checkpoints: Path) -> None:
    """Finish or undo what an interrupted save or deletion left behind."""
    for item in list(checkpoints.iterdir()):
        if item.name.startswith(".old-"):
            final = checkpoints / item.name.removeprefix(".old-")
            if not final.exists():
                item.rename(final)
                continue
        if item.is_dir() and item.name.startswith((".tmp-", ".old-", ".trash-")):
            shutil.rmtree(item, ignore_errors=True)


def _write_json(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Write and synchronise; returns the manifest's entry."""
    content = json.dumps(values, indent=2).encode()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
