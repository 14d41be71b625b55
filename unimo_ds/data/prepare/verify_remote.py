"""Verifies a data folder at a URL: every shard is fetched, checked like a local one, and deleted.

Copies are in a temporary folder, one shard per worker at a time. A bad file is fetched again before it is reported, since it
may have been damaged in transfer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from unimo_ds.data.prepare.verify import (
    Problem,
    check_file,
    check_names,
    check_pickles,
    check_shard,
    check_together,
    verify,
)
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import FileEntry, ShardEntry
from unimo_ds.data.storage.open_folder import load_manifest_at
from unimo_ds.data.storage.remote_files import RemoteFiles, scheme_of
from unimo_ds.data.storage.retrying import Retries
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError

_UNLISTED = ("http", "https")
"""Web servers, which cannot list their files."""


def verify_at(location: str | os.PathLike[str], workers: Workers | None = None) -> list[Problem]:
    """`verify.verify` for a local folder or a URL. At a URL, unlisted files are found only if the store allows listing; these
    include the shards of an unfinished import.

    Raises:
        UserError: no data folder, or the local disk is full.
    """
    url = locations.plain(os.fspath(location))
    if scheme_of(url) is None or Path(url).is_dir():
        return verify(url, workers)
    files, retry = RemoteFiles(url), Retries()
    listed = load_manifest_at(files, retry)
    names: list[str] = []
    if scheme_of(url) not in _UNLISTED:
        with contextlib.suppress(OSError):  # permission to read need not include listing
            names = files.names()
    problems = [*check_pickles(names), *check_names(names, listed)]
    with tempfile.TemporaryDirectory(prefix="unimo-verify-") as folder:
        for entry in listed.files:
            problems += _check_file(files, Path(folder), entry, retry)
        tasks = [(url, Path(folder), entry) for entry in listed.shards]
        problems += itertools.chain(*(workers or Workers()).run_all(_check_shard, tasks, label="verify"))
        if not problems:
            problems += check_together(Path(folder), listed)
        return [dataclasses.replace(one, reason=one.reason.replace(folder, files.url)) for one in problems]


def _check_file(files: RemoteFiles, folder: Path, entry: FileEntry, retry: Retries) -> list[Problem]:
    def check() -> list[Problem]:
        missing = _bring(files, entry.file, entry.bytes, folder, retry)
        return missing or check_file(folder, entry)

    return _twice(check)


def _check_shard(url: str, folder: Path, entry: ShardEntry) -> list[Problem]:
    """As `verify.check_shard`. The index stays in the folder."""
    files, retry = RemoteFiles(url), Retries()

    def check() -> list[Problem]:
        missing = _bring(files, shards.index_path(entry.file).name, entry.index_bytes, folder, retry)
        missing += _bring(files, entry.file, entry.bytes, folder, retry)
        try:
            return missing or check_shard(folder, entry)
        finally:
            (folder / entry.file).unlink(missing_ok=True)

    return _twice(check)


def _twice(check: Callable[[], list[Problem]]) -> list[Problem]:
    return check() and check()


def _bring(files: RemoteFiles, name: str, size: int, folder: Path, retry: Retries) -> list[Problem]:
    """Fetch a file, or enough of it to show that it is too long. Returns why it could not be fetched."""

    def fetch() -> None:
        with open(folder / name, "wb") as target:
            for chunk in files.chunks(name):
                target.write(chunk)
                if target.tell() > size:
                    break

    try:
        retry(name, fetch)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {folder} is full ({error.strerror}); set TMPDIR to another disk") from None
        return [Problem(name, f"cannot be read ({error})")]
    return []
