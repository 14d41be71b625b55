"""Checkpoints on disk: the only module that depends on their form. Plain files, no DeepSpeed, no process group.

checkpoints/.tmp-step-N/   being written          checkpoints/step-N/   complete: files, state.json, manifest.json
checkpoints/latest         text `step-N`, replaced last      checkpoints/best     the one with the best evaluation
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import replace_file, sync_folder

FOLDER = "checkpoints"
LATEST = "latest"
BEST = "best"
POINTERS = (LATEST, BEST)
MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
WEIGHT = "weight"
"""Slot of the fp32 master weights."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Slots of the optimizer state: every optimizer here keeps tensors with these names for each weight."""
FILES = {WEIGHT: "model.safetensors", **{moment: f"{moment}.safetensors" for moment in MOMENTS}}
_WRITING = ".tmp-"
_COMPLETE = re.compile(r"step-([0-9]{1,18})")
_SPARE_BYTES = 16 * 2**20


def name_of(step: int) -> str:
    """Of the folder of a complete checkpoint."""
    return f"step-{step}"


def being_written(checkpoints: Path, step: int) -> Path:
    """Folder of a checkpoint until it is complete."""
    return checkpoints / f"{_WRITING}{name_of(step)}"


def begin(checkpoints: Path, step: int, num_bytes: int) -> Path:
    """Make the empty folder to write the checkpoint of `step` into.

    Raises:
        OSError: it cannot be made, or less than `num_bytes` plus a reserve is free; the message says what to do.
    """
    temporary = being_written(checkpoints, step)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(checkpoints).free
    except OSError as error:
        raise OSError(f"cannot make {temporary}: {error.strerror}; free space or give another --run-dir") from None
    if free < num_bytes + _SPARE_BYTES:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"no room for a checkpoint in {checkpoints}: {_space(checkpoints, num_bytes)}")
    return temporary


def complete(
    temporary: Path, entries: Mapping[str, Mapping[str, Any]], described: Mapping[str, Any], *, is_best: bool
) -> Path:
    """Add state.json and the manifest to the tensor files, rename the folder, and point to it. Returns it.

    entries: size and hash of the tensor files. described: content of state.json. May raise OSError; see `give_up`.
    """
    checkpoints, final = temporary.parent, _final(temporary)
    files = {**entries, STATE: _write_json(temporary / STATE, described)}
    _write_json(temporary / MANIFEST, {"format": FORMAT, "files": files})
    _appear(temporary, final)
    point(checkpoints, LATEST, final.name)
    if is_best:
        point(checkpoints, BEST, final.name)
    return final


def give_up(temporary: Path, error: OSError, num_bytes: int) -> str:
    """Remove what was written of a checkpoint that failed; returns the error message."""
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        state = f"{_space(temporary.parent, num_bytes)}; earlier ones are intact"
    except OSError:
        state = f"{temporary.parent} is gone"
    return f"cannot write the checkpoint {_final(temporary)}: {error}; {state}"


def _final(temporary: Path) -> Path:
    return temporary.with_name(temporary.name.removeprefix(_WRITING))


def _space(checkpoints: Path, num_bytes: int) -> str:
    free = shutil.disk_usage(checkpoints).free
    return f"{free:,} bytes are free and {num_bytes + _SPARE_BYTES:,} are needed"


def completed_steps(run_dir: Path) -> list[int]:
    """Steps of the completely written checkpoints, in ascending order; contents are not checked."""
    return sorted(
        int(match[1])
        for folder in (run_dir / FOLDER).glob("step-*")
        if (match := _COMPLETE.fullmatch(folder.name)) and (folder / MANIFEST).is_file()
    )


def named(pointer: Path) -> str:
    """The name of a checkpoint in a pointer file; empty if there is none."""
    name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    return name if _COMPLETE.fullmatch(name) else ""


def problems_of(folder: Path) -> list[str]:
    """Problems of a checkpoint: missing or truncated files, changed bytes. Empty for a good one."""
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [str(error)]
    problems = [f"{folder / name} is not listed" for name in (*FILES.values(), STATE) if name not in manifest.files]
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                problems.append(f"{path} has {size} bytes instead of {entry.bytes}")
            elif has_changed(path, entry.sha256):
                problems.append(f"{path} has changed since it was written (SHA-256 differs)")
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror})")
    return problems


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of a file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Lists the files of a complete checkpoint, except the manifest itself."""

    format: int
    files: Mapping[str, FileEntry]


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        UserError: damaged, or of another version.
    """
    found: Manifest = strict_json.read(folder / MANIFEST, Manifest)
    if found.format != FORMAT:
        raise UserError(f"{folder / MANIFEST} has format {found.format}, this version reads {FORMAT}")
    return found


def has_changed(path: Path, sha256: str) -> bool:
    """Whether a file's content differs from its manifest entry. May raise OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() != sha256


def choose(checkpoints: Path, say: Callable[[str], None]) -> tuple[str, str, Any]:
    """Name of the newest good checkpoint (empty if there is none), an error message or "", and its state.json."""
    if not checkpoints.is_dir():
        return "", "", None
    _tidy(checkpoints)
    names = sorted(
        (item.name for item in checkpoints.iterdir() if _COMPLETE.fullmatch(item.name)),
        key=lambda name: int(name.removeprefix("step-")),
        reverse=True,
    )
    pointer = checkpoints / LATEST
    latest = named(pointer)
    if pointer.is_file() and not names:
        text = f"{pointer} names one, but there is no checkpoint beside it; restore it or give another --run-dir"
        return "", text, None
    for name in names:
        problems = problems_of(checkpoints / name)
        if not problems:
            if name != latest:
                say(f"resuming from {name}, though {pointer} says {latest or 'nothing'!r}")
                point(checkpoints, LATEST, name)
            described = strict_json.read(checkpoints / name / STATE, dict[str, Any])
            _restore_best(checkpoints, described["progress"])
            return name, "", described
        say(f"skipping a damaged checkpoint: {'; '.join(problems)}")
    if names:
        text = f"no checkpoint in {checkpoints} is good ({len(names)} damaged); restore one or give another --run-dir"
        return "", text, None
    return "", "", None


def _restore_best(checkpoints: Path, progress: dict[str, Any]) -> None:
    """Point to the best checkpoint of `progress`; if it no longer exists (pruned before a rollback), clear it in `progress`."""
    best = progress["best"] and name_of(progress["best"]["step"])
    if best and not (checkpoints / best / MANIFEST).is_file():
        progress["best"] = None
        (checkpoints / BEST).unlink(missing_ok=True)
    elif best and best != named(checkpoints / BEST):
        point(checkpoints, BEST, best)


def has_good(checkpoints: Path, *, up_to: int) -> bool:
    """Whether any checkpoint up to that step passes verification."""
    steps = [step for step in completed_steps(checkpoints.parent) if step <= up_to]
    return any(not problems_of(checkpoints / name_of(step)) for step in reversed(steps))


def prune(checkpoints: Path, *, keep_last: int, keep_every: int, newest: int, way_back: int | None = None) -> None:
    """Delete checkpoints except the last ones, the best one and those kept permanently. May raise OSError.

    way_back: also keep the newest one up to this step: a series of spikes began there and may end in a rollback to before it.
    """
    steps = completed_steps(checkpoints.parent)
    kept = set(steps[-keep_last:]) | {newest}
    if way_back is not None:
        kept.update([step for step in steps if step <= way_back][-1:])
    if keep_every:
        kept |= {step for step in steps if step % keep_every == 0}
    best = named(checkpoints / BEST)
    kept |= {step for step in steps if name_of(step) == best}
    for step in set(steps) - kept:
        _remove(checkpoints, step)


def remove_after(checkpoints: Path, step: int) -> None:
    """Delete the checkpoints of steps after `step`, newest first; point to the newest remaining one. May raise OSError."""
    _tidy(checkpoints)  # otherwise an older version of such a step, whose deletion failed, would be restored later
    steps = completed_steps(checkpoints.parent)
    for later in sorted((found for found in steps if found > step), reverse=True):
        _remove(checkpoints, later)
    left = [found for found in steps if found <= step]
    if left:
        point(checkpoints, LATEST, name_of(left[-1]))
    best = named(checkpoints / BEST)
    if best and not (checkpoints / best).is_dir():
        (checkpoints / BEST).unlink()


def _remove(checkpoints: Path, step: int) -> None:
    """Rename first: a half-deleted folder must not look like a damaged checkpoint. May raise OSError."""
    trash = checkpoints / f".trash-{name_of(step)}"
    (checkpoints / name_of(step)).rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def point(checkpoints: Path, pointer: str, name: str) -> None:
    """Make a pointer file name a checkpoint, atomically."""
    replace_file(checkpoints / pointer, name + "\n")


def _appear(temporary: Path, final: Path) -> None:
    """Rename a complete folder to its final name. An older one of the same name stays until then."""
    sync_folder(temporary)
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(checkpoints: Path) -> None:
    """Finish or undo what an interrupted save or deletion left behind."""
    for item in list(checkpoints.iterdir()):
        if item.name.startswith(".old-"):
            final = checkpoints / item.name.removeprefix(".old-")
            if not final.exists():
                item.rename(final)
                continue
        if item.is_dir() and item.name.startswith((_WRITING, ".old-", ".trash-")):
            shutil.rmtree(item, ignore_errors=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write and fsync; returns the manifest entry."""
    content = json.dumps(values, indent=2).encode()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
