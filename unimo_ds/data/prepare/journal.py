"""The progress of a stage on disk: a run that was killed at any moment continues where it stopped.

A journal is a hidden folder beside the shards. A task's entry is written atomically after the files it stands for; so an entry
proves that they exist, and a task without one is repeated, with the same result. A finished stage has no journal, only its
report.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimo_ds.data.storage import manifest, shards
from unimo_ds.data.storage.begun_imports import BEGUN, IMPORT, JOURNALS, begun_imports
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

_ATTEMPTS = 100
"""Attempts to open a folder that others may make and remove at any moment. If all fail, it is a dangling link."""


class Journal:
    """Journal of one stage over one folder."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / JOURNALS / stage

    @property
    def begun(self) -> str | None:
        """Fingerprint of the unfinished work; None: none."""
        content = read_json_object(self.path / BEGUN)
        found: str | None = content.get("fingerprint") if isinstance(content, dict) else None
        return found

    def begin(self, fingerprint: str) -> bool:
        """Continue this work, or clear the journal and start it. Returns whether it continues."""
        if self.begun == fingerprint:
            return True
        self.clear()
        self.write(BEGUN, {"fingerprint": fingerprint})
        return False

    def clear(self) -> None:
        """Remove all entries, but not the mark that the folder may hold unfinished work."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(BEGUN, {"fingerprint": None})
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != BEGUN:
                entry.unlink()

    def write(self, name: str, content: Any) -> None:
        write_json(self.path / name, content)

    def read(self, name: str) -> Any:
        """Content of an entry; None if there is none."""
        return read_json_object(self.path / name)

    def forget(self) -> None:
        """Remove the journal."""
        if self.path.exists():
            # The mark first, so that half a journal is not mistaken for a complete one.
            (self.path / BEGUN).unlink(missing_ok=True)
            shutil.rmtree(self.path)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def import_journal(folder: Path, source: str) -> Journal:
    return Journal(folder, f"{IMPORT}{source}")


def unfinished_imports(folder: Path) -> list[str]:
    """Sources of which the folder may hold only a part: their import was killed and not continued.

    Not those whose shards are in the manifest, or whose journal has lost its mark: they were killed after all was done.
    """
    sources = begun_imports(folder)
    known = manifest.manifest_in(folder) if sources else None
    listed = {entry.file for entry in known.shards} if known else set()
    return [source for source in sources if not listed & _shards_of(folder, source)]


def unfinished_shards(folder: Path, *, but: str = "") -> set[str]:
    """File names of the shards of `unfinished_imports`. but: the source whose import is about to finish."""
    sources = (source for source in unfinished_imports(folder) if source != but)
    return {name for source in sources for name in _shards_of(folder, source)}


def _shards_of(folder: Path, source: str) -> set[str]:
    return {path.name for path in shards.files_of(folder, source)}


def begun_stages(folder: Path) -> list[str]:
    """Names of unfinished stages over the folder's own shards."""
    names = (mark.parent.name for mark in (folder / JOURNALS).glob(f"*/{BEGUN}"))
    return sorted(name for name in names if not name.startswith(IMPORT) and name != "all")


def check_whole(folder: Path) -> None:
    """Refuse a folder with shards newer than its manifest, as a killed stage leaves it: completing it by another stage would
    mix regions of two extractors, or captions with and without rewrites.

    Raises:
        UserError: some shards are newer; the message names one, and the stage.
    """
    if path := changed_shard(folder):
        begun = begun_stages(folder)
        raise UserError(
            f"`unimo prepare {begun[0]}` was begun there and not finished ({path} is new already); give that command again first"
            if begun
            else f"{path} was changed since its manifest was written; restore it, or accept it with `unimo prepare pack {folder}`"
        )


def changed_shard(folder: Path) -> Path | None:
    """The first shard that differs from the manifest, as does its index; None if there is none."""
    known = manifest.manifest_in(folder)
    for entry in known.shards if known else ():
        path = folder / entry.file
        # A missing shard is reported where it is needed, and an index can be rebuilt.
        if path.is_file() and not (
            _is_file(shards.index_path(path), entry.index_sha256) or _is_file(path, entry.sha256)
        ):
            return path
    return None


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and manifest.file_entry(path).sha256 == sha256


@contextlib.contextmanager
def alone_in(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Lock a data folder against other stages: two would remove each other's files and choose different tokenizers.

    The operating system holds the lock, so that it ends with this process in any case; some file systems have no locks.

    make: create the folder if needed; it is removed again if it stays empty.

    Raises:
        UserError: another stage is at work there.
    """
    handle, is_new = _held(folder, make=make)
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if handle is not None:
            os.close(handle)


def _held(folder: Path, *, make: bool) -> tuple[int | None, bool]:
    """(open and locked handle, whether the folder was made here); None if it cannot be opened, which the stage will report."""
    for _ in range(_ATTEMPTS):
        try:
            is_new = make and _is_made(folder)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            break
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, handle)
            _lock(handle, folder)
            with contextlib.suppress(FileNotFoundError):  # it may have been removed before the lock
                if os.path.samestat(os.fstat(handle), folder.stat()):
                    stack.pop_all()
                    return handle, is_new
    return None, False


def _is_made(folder: Path) -> bool:
    """Make the folder. Returns False if it exists. Raises OSError."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another `unimo prepare` is at work in {folder}; start this one when that has ended") from None
    except OSError:
        return  # no locks here


def sweep(folder: Path) -> None:
    """Remove half-written files of killed writers from a data folder; nothing else may be at work there."""
    for pattern in (".*.partial", f"{JOURNALS}/.*.partial"):
        for scrap in folder.glob(pattern):
            scrap.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    write_whole(path, json.dumps(content, separators=(",", ":")).encode())


def read_json_object(path: Path) -> Any:
    """Content of a JSON file; None if it does not exist or is not valid JSON."""
    try:
        return strict_json.parsed(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
