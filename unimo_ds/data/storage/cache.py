"""Access to the files of a data folder: local, or remote through fsspec and a local cache of bounded size.

Remote shards are fetched whole, checked against the manifest's SHA-256 during transfer, and shared by all processes that use
the same cache folder. The least recently used are deleted when the bound is reached or the disk is full; a process still
reading one has it open and is not affected.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Protocol

from unimo_ds.data.storage.remote_files import RemoteFiles, scheme_of
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import opened_anew

_STALE_NANOSECONDS = 3600 * 10**9
"""A file without new bytes for this long is no longer being fetched."""


_NAME_DIGITS = 16
"""Length of the name of a remote folder's place in the cache; the cache ignores other names."""


class RemoteDamage(OSError):
    """Fetched content is not what the manifest describes."""


class Storage(Protocol):
    """Reads the files of one data folder by name."""

    most_open: int
    """Most files that a reader keeps open."""

    def describe(self, name: str) -> str:
        """The file's place, for messages."""

    def read(self, name: str) -> bytes:
        """A small file, whole. Raises OSError."""

    def local_path(self, name: str, *, size: int, sha256: str) -> Path:
        """A local file with the content; fetched first if remote. Raises OSError."""

    def open_local(self, name: str, *, size: int, sha256: str) -> FileIO:
        """The same, opened."""


def open_storage(location: str, *, cache_dir: str | None, cache_bytes: int) -> Storage:
    """The storage of a local folder or a URL.

    Raises:
        UserError: an unsupported kind of URL.
    """
    if scheme_of(location) is None or Path(location).is_dir():
        return LocalStorage(Path(location))
    return RemoteStorage(RemoteFiles(location), cache_folder(cache_dir), cache_bytes)


def cache_folder(cache_dir: str | None) -> Path:
    """The cache folder; None: in the user's home."""
    return Path(cache_dir) if cache_dir is not None else Path.home() / ".cache" / "unimo_ds" / "shards"


def refuse_open_to_all(folder: Path) -> None:
    """What is in the cache is believed: checksums there are no defence against people.

    Raises:
        UserError: everybody may write to the folder.
    """
    if folder.stat().st_mode & stat.S_IWOTH:
        raise UserError(
            f"everybody may write to the cache folder {folder}, and so choose what is trained on; `chmod o-w` it if what it "
            "holds is yours, or set data.cache_dir"
        )


class LocalStorage:
    """A folder on this machine or on a shared file system."""

    most_open = 128

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def describe(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def local_path(self, name: str, *, size: int, sha256: str) -> Path:
        return self.folder / name

    def open_local(self, name: str, *, size: int, sha256: str) -> FileIO:
        return FileIO(self.folder / name)


class RemoteStorage:
    """A URL behind a cache folder of bounded size. May be used by many processes at once."""

    most_open = 4
    """Few, since a file deleted while open still takes space on the disk, and reopening one marks it as used."""

    def __init__(self, files: RemoteFiles, cache_dir: Path, cache_bytes: int) -> None:
        """
        Raises:
            UserError: the cache folder cannot be made, or everybody may write to it.
        """
        self._files = files
        self.cache_bytes = cache_bytes
        self.folder = cache_dir / hashlib.sha256(files.url.encode()).hexdigest()[:_NAME_DIGITS]
        self.cache_dir = cache_dir
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the cache folder {self.folder}: {error.strerror}; set data.cache_dir"
            ) from None
        refuse_open_to_all(self.folder)

    def describe(self, name: str) -> str:
        return self._files.describe(name)

    def read(self, name: str) -> bytes:
        return self._files.read(name)

    def local_path(self, name: str, *, size: int, sha256: str) -> Path:
        """The cached file, fetched and checked if it is not there yet.

        Raises:
            UserError: it is larger than the whole cache, or the local disk is full.
            RemoteDamage: size or checksum differ from the manifest's.
            OSError: the remote or the local disk failed.
        """
        # With the checksum in the name, an old copy is not used after the remote file was replaced.
        path = self.folder / f"{sha256[:16]}-{name}"
        if self._touch(path, size):
            return path
        if size > self.cache_bytes:
            raise UserError(
                f"{self.describe(name)} has {size} bytes, the cache {self.cache_bytes}: raise data.cache_bytes above it"
            )
        # The cache may have been emptied by hand.
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if not self._touch(path, size):
                self._make_room(size)
                self._fetch(name, path, size, sha256)
        return path

    def open_local(self, name: str, *, size: int, sha256: str) -> FileIO:
        """Errors as above."""
        while True:
            path = self.local_path(name, size=size, sha256=sha256)
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it since
                return FileIO(path)

    def _touch(self, path: Path, size: int) -> bool:
        """Mark a cached file as used now. False if it is missing, or was truncated by a full disk."""
        try:
            os.utime(path)
            return path.stat().st_size == size
        except FileNotFoundError:
            return False

    def _fetch(self, name: str, path: Path, size: int, sha256: str) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        digest, received = hashlib.sha256(), 0
        try:
            with BufferedWriter(opened_anew(aside)) as target:
                for chunk in self._files.chunks(name):
                    received += len(chunk)
                    if received > size:
                        break
                    digest.update(chunk)
                    target.write(chunk)
            if received != size or digest.hexdigest() != sha256:
                raise RemoteDamage(
                    f"{self.describe(name)} is not what the manifest describes ({received} bytes of {size})"
                )
            os.replace(aside, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of the cache folder {self.cache_dir} is full ({error.strerror}); make room there, or set "
                "data.cache_dir to another disk"
            ) from None
        finally:
            aside.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete the least recently used files of the whole cache until `size` more bytes fit under the bound and on the disk.

        Files being fetched by others count and stay; partial files left by killed processes are deleted.
        """
        with _locked(self.cache_dir / ".evict.lock"):
            present = []
            for path in self.cache_dir.glob(f"{'[0-9a-f]' * _NAME_DIGITS}/*"):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    present.append((status.st_mtime_ns, status.st_size, path))
            held = sum(held_bytes for _, held_bytes, _ in present)
            still_fetched = time.time_ns() - _STALE_NANOSECONDS
            for used_at, held_bytes, path in sorted(present, key=lambda item: item[0]):
                if held + size <= self.cache_bytes and size <= shutil.disk_usage(self.cache_dir).free:
                    return
                if path.suffix == ".lock" or (path.suffix == ".partial" and used_at > still_fetched):
                    continue
                path.unlink(missing_ok=True)
                held -= held_bytes


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes during the block. The kernel releases it when a process dies."""
    with open(path, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
