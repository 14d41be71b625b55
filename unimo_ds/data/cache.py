"""Where the files of a data folder come from: a local folder, or a remote one through fsspec and a bounded local cache.

Remote shards are fetched whole, checked against the manifest's SHA-256 while they arrive, and shared by all processes that use
the same cache folder. The least recently used are dropped when the bound is reached or the disk is full; a process that still
reads one keeps it open and does not notice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from unimo_ds.utils.errors import UserError

PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "abfs", "az", "hf", "memory")
"""What a URL may begin with. Never a shell (`pipe:`), never a chain of file systems (`a::b`)."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_CHUNK = 16 * 2**20
"""Bytes of one request."""
_STALE_NANOSECONDS = 3600 * 10**9
"""After so long without a byte a file is no longer being fetched."""


class RemoteDamage(OSError):
    """What was fetched is not what the manifest describes."""


class Storage(Protocol):
    """Reads the files of one data folder by their names."""

    most_open: int
    """Files that a reader keeps open."""

    def describe(self, name: str) -> str:
        """The file's place, for messages."""

    def read(self, name: str) -> bytes:
        """A small file, whole. Raises OSError."""

    def local_path(self, name: str, *, size: int, sha256: str) -> Path:
        """A local file with the content; a remote one is fetched first. Raises OSError."""

    def open_local(self, name: str, *, size: int, sha256: str) -> FileIO:
        """The same, opened."""


def open_storage(location: str | os.PathLike[str], *, cache_dir: str | None, cache_bytes: int) -> Storage:
    """The storage of a local folder or a URL.

    Raises:
        UserError: a URL of a kind that is not read.
    """
    text = os.fspath(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    scheme = _SCHEME.match(text)
    if scheme is None or Path(text).is_dir():
        return LocalStorage(Path(text))
    if scheme[1] not in PROTOCOLS or "::" in text:
        raise UserError(f"cannot read data from {text!r}: it must be a local folder or a URL of {', '.join(PROTOCOLS)}")
    folder = Path(cache_dir) if cache_dir is not None else Path.home() / ".cache" / "unimo_ds" / "shards"
    return RemoteStorage(text.rstrip("/"), folder, cache_bytes)


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
    """A file that was dropped while it is open still takes its place on the disk; and opening it again says that it is used."""

    def __init__(self, url: str, cache_dir: Path, cache_bytes: int) -> None:
        """
        Raises:
            UserError: the package that reads such URLs is not installed, or the cache folder cannot be made.
        """
        self.url = url
        self.cache_bytes = cache_bytes
        self._connections: dict[int, tuple[Any, str]] = {}
        try:
            self._connection()
        except ImportError as error:
            raise UserError(f"cannot read {url}: {error}") from None
        self.folder = cache_dir / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.cache_dir = cache_dir
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the cache folder {self.folder}: {error.strerror}; set data.cache_dir"
            ) from None

    def _connection(self) -> tuple[Any, str]:
        """fsspec's file system, and the folder in it.

        Most of them work on a thread of the process that opened them, so a forked worker opens its own. It keeps its parent's as
        well: to close that would close connections that the parent still uses.
        """
        found = self._connections.get(os.getpid())
        if found is None:
            # Imported here: local runs need none of it.
            import fsspec

            found = self._connections[os.getpid()] = fsspec.core.url_to_fs(self.url)
        return found

    def describe(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        files, root = self._connection()
        with _remote_errors(self.describe(name)):
            content: bytes = files.cat_file(f"{root}/{name}")
        return content

    def local_path(self, name: str, *, size: int, sha256: str) -> Path:
        """The cached file, fetched and checked where it is not there yet.

        Raises:
            UserError: it is larger than the whole cache, or the local disk is full.
            RemoteDamage: size or checksum differ from the manifest's.
            OSError: the remote or the local disk failed.
        """
        # The checksum in the name keeps a replaced remote file from being served from an old copy.
        path = self.folder / f"{sha256[:16]}-{name}"
        if self._touch(path, size):
            return path
        if size > self.cache_bytes:
            raise UserError(
                f"{self.describe(name)} has {size} bytes, the cache {self.cache_bytes}: raise data.cache_bytes above it"
            )
        # Somebody may have emptied the cache by hand.
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if not self._touch(path, size):
                self._make_room(size)
                with _remote_errors(self.describe(name)):
                    self._fetch(name, path, size, sha256)
        return path

    def open_local(self, name: str, *, size: int, sha256: str) -> FileIO:
        """Errors as above."""
        while True:
            path = self.local_path(name, size=size, sha256=sha256)
            with contextlib.suppress(FileNotFoundError):  # another process has dropped it since
                return FileIO(path)

    def _touch(self, path: Path, size: int) -> bool:
        """Mark a cached file as used now. False where it is not there, or was left short by a full disk."""
        try:
            os.utime(path)
            return path.stat().st_size == size
        except FileNotFoundError:
            return False

    def _fetch(self, name: str, path: Path, size: int, sha256: str) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        digest, received = hashlib.sha256(), 0
        try:
            files, root = self._connection()
            with files.open(f"{root}/{name}", "rb", cache_type="none") as source, open(aside, "wb") as target:
                while chunk := source.read(_CHUNK):
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
        """Drop the least recently used files of the whole cache until `size` more bytes fit under the bound and onto the disk.

        What others are fetching counts, and stays; what they left behind when they were killed goes.
        """
        with _locked(self.cache_dir / ".evict.lock"):
            present = []
            for path in self.cache_dir.glob("*/*"):
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


_LIBRARY_ERRORS = (
    ("aiohttp", "ClientError"),
    ("asyncio", "TimeoutError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
)
"""What the libraries behind fsspec raise where a file system would raise OSError."""


def _remote_failures() -> tuple[type[Exception], ...]:
    """OSError and those of them that can occur here: a library that is not loaded has raised nothing."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _LIBRARY_ERRORS)
    return (OSError, *(kind for kind in found if isinstance(kind, type)))


@contextlib.contextmanager
def _remote_errors(where: str) -> Iterator[None]:
    """Within the block, what a library raises becomes an OSError that names the file and the cause."""
    try:
        yield
    except _remote_failures() as error:
        cause: BaseException = error
        if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, _remote_failures()):
            # fsspec says so of every failure to open a file over HTTP.
            cause = error.__cause__
        elif isinstance(error, OSError):
            raise
        raise OSError(f"{where}: {type(cause).__name__}: {cause}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes for the block. The kernel releases it when a process dies."""
    with open(path, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
