"""What a stage has done so far, on disk: a run that was killed at any moment goes on where it stopped.

A journal is a hidden folder beside the shards. A task's entry is written, whole or not at all, after the files it stands for;
so an entry says that they are there, and a task without one is done again, with the same result. A finished stage has no
journal: what it was is then in its report.
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

from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.storage import manifest, shards
from unimo_ds.data.storage.begun_imports import BEGUN, IMPORT, JOURNALS, begun_imports
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

_ATTEMPTS = 100
"""At a folder that others may make and remove at any moment. One that is still not there then lies behind a link to nowhere."""


class Journal:
    """Journal of one stage over one folder."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / JOURNALS / stage

    @property
    def begun(self) -> str | None:
        """Fingerprint of the work that was begun; None: none."""
        content = read_json_object(self.path / BEGUN)
        found: str | None = content.get("fingerprint") if isinstance(content, dict) else None
        return found

    def begin(self, fingerprint: str) -> bool:
        """Go on with this work, or forget what is there and begin it. Returns whether there is something to go on with."""
        if self.begun == fingerprint:
            return True
        self.clear()
        self.write(BEGUN, {"fingerprint": fingerprint})
        return False

    def clear(self) -> None:
        """Forget what was done, but not that the folder may hold some of it."""
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
        """The content of an entry; None where there is none."""
        return read_json_object(self.path / name)

    def forget(self) -> None:
        """Leave no trace."""
        if self.path.exists():
            # The mark goes first: half a journal must not be taken for a whole one.
            (self.path / BEGUN).unlink(missing_ok=True)
            shutil.rmtree(self.path)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def import_journal(folder: Path, source: str) -> Journal:
    return Journal(folder, f"{IMPORT}{source}")


def unfinished_imports(folder: Path) -> list[str]:
    """Sources of which the folder may hold a part alone: their import was killed and not continued.

    Not those whose shards the manifest lists, or whose journal has lost its mark: a kill came when all was done.
    """
    sources = begun_imports(folder)
    known = manifest.manifest_in(folder) if sources else None
    listed = {entry.file for entry in known.shards} if known else set()
    return [source for source in sources if not listed & _shards_of(folder, source)]


def unfinished_shards(folder: Path, *, but: str = "") -> set[str]:
    """File names of such sources' shards. but: the source whose import is just being finished."""
    sources = (source for source in unfinished_imports(folder) if source != but)
    return {name for source in sources for name in _shards_of(folder, source)}


def _shards_of(folder: Path, source: str) -> set[str]:
    return {path.name for path in shards.files_of(folder, source)}


def begun_stages(folder: Path) -> list[str]:
    """Names of those over the folder's own shards that were begun and not finished."""
    names = (mark.parent.name for mark in (folder / JOURNALS).glob(f"*/{BEGUN}"))
    return sorted(name for name in names if not name.startswith(IMPORT) and name != "all")


def check_whole(folder: Path) -> None:
    """Refuse a folder of which some shards are newer than its manifest, which a stage that was killed leaves: to complete it by
    something else would pass regions of two extractors, or captions with and without rewrites, for those of one.

    Raises:
        UserError: naming a shard, and the stage.
    """
    if path := changed_shard(folder):
        begun = begun_stages(folder)
        raise UserError(
            f"`unimo prepare {begun[0]}` was begun there and not finished ({path} is new already); give that command again first"
            if begun
            else f"{path} was changed since its manifest was written; restore it, or accept it with `unimo prepare pack {folder}`"
        )


def changed_shard(folder: Path) -> Path | None:
    """The first shard that is not what the manifest says, nor is its index."""
    known = manifest.manifest_in(folder)
    for entry in known.shards if known else ():
        path = folder / entry.file
        # What is lost is told by whoever looks for it, and an index alone can be made again.
        if path.is_file() and not (
            _is_file(shards.index_path(path), entry.index_sha256) or _is_file(path, entry.sha256)
        ):
            return path
    return None


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and manifest.file_entry(path).sha256 == sha256


@contextlib.contextmanager
def alone_in(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Keep other stages out of a data folder meanwhile: two would sweep each other's files away, and choose two tokenizers.

    The lock is the system's, so that nothing is left of it however this process ends; file systems without locks have none.

    make: a folder that is not there yet; it goes again if nothing was put into it.

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
    """(open and locked, made here); None where it cannot be opened, of which the stage itself speaks."""
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
            with contextlib.suppress(FileNotFoundError):  # it may have gone before it was locked
                if os.path.samestat(os.fstat(handle), folder.stat()):
                    stack.pop_all()
                    return handle, is_new
    return None, False


def _is_made(folder: Path) -> bool:
    """Whether it was not there yet. Raises OSError."""
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
    """Remove what writers that were killed left half written in a data folder; nobody else may be at work there."""
    for pattern in (".*.partial", f"{JOURNALS}/.*.partial"):
        for scrap in folder.glob(pattern):
            scrap.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    write_whole(path, json.dumps(content, separators=(",", ":")).encode())


def read_json_object(path: Path) -> Any:
    """The content of a JSON file; None where there is no such file or it was not written by `write_json`."""
    try:
        return strict_json.parsed(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def report_of(content: dict[str, Any]) -> Report:
    """A report that was stored."""
    return Report(dict(content["counts"]), {reason: list(names) for reason, names in content["skipped"].items()})
