"""Files below a URL, through fsspec's clients. Each call ends in bounded time or fails as an OSError that tells where and why.

The clients have patience of their own, one inside the other: of a server that takes connections and never answers, s3fs waits for
five times five answers of botocore, fifteen seconds each.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO, TypeVar

from unimo_ds.utils.errors import UserError

T = TypeVar("T")

CLIENTS = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs==2026.9.0",
    "gs": "gcsfs==2026.10.1",
    "gcs": "gcsfs==2026.10.1",
    "abfs": "adlfs==2026.8.0",
    "az": "adlfs==2026.8.0",
    "hf": "huggingface_hub",
    "memory": "fsspec",
}
"""What a URL may begin with, and the package that reads it, in the version that was run (as pyproject.toml has it). Never a shell
(`pipe:`), never a chain of file systems (`a::b`)."""
CURE = "check the address, the endpoint and the credentials"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_CHUNK = 16 * 2**20
"""Bytes of one request."""
_PATIENCE = 60.0
"""Seconds for one request, the client's own repetitions included."""
_FAILURES = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "ChecksumError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("azure.core.exceptions", "AzureError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
)
"""What the clients and the libraries behind them raise where a file system would raise OSError."""


def scheme_of(location: str) -> str | None:
    """What `location` begins with where it is a URL, of a kind that is read or not."""
    found = _SCHEME.match(location)
    return None if found is None else found[1]


class RemoteFiles:
    """The files of one folder, by their names. May be used by forked processes and by threads."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            UserError: a URL of a kind that is not read, or whose client is not installed or refuses its settings.
        """
        self.url = url.rstrip("/")
        scheme = scheme_of(url)
        if scheme not in CLIENTS or "::" in url:
            raise UserError(
                f"cannot read data from {url!r}: it must be a local folder or a URL of {', '.join(CLIENTS)}"
            )
        self._connections: dict[int, tuple[Any, str]] = {}
        try:
            # Here, for local runs need none of it, and before the clock runs: imports may take long on a busy file system.
            import fsspec

            fsspec.get_filesystem_class(scheme)
            _ask(url, self._connection)
        except ImportError as error:
            raise UserError(f"cannot read {url}: {error} (`pip install {CLIENTS[scheme]}`)") from None
        except OSError as error:
            raise UserError(f"cannot read {error}; {CURE}") from None

    def describe(self, name: str) -> str:
        """The file's place, for messages."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        """A small file, whole. Raises OSError."""

        def read() -> bytes:
            files, root = self._connection()
            content: bytes = files.cat_file(f"{root}/{name}")
            return content

        return _ask(self.describe(name), read)

    def chunks(self, name: str, size: int = _CHUNK) -> Iterator[bytes]:
        """A file in pieces of `size` bytes, each a request. Raises OSError."""

        def open_file() -> Any:
            files, root = self._connection()
            return files.open(f"{root}/{name}", "rb", cache_type="none")

        with _ask(self.describe(name), open_file) as source:

            def read() -> bytes:
                # None: a web server does not say. gcsfs parts a request, and fails where a part lies beyond the end.
                wanted = size if source.size is None else min(size, source.size - source.tell())
                piece: bytes = source.read(wanted)
                return piece

            while chunk := _ask(self.describe(name), read):
                yield chunk

    def open(self, name: str, size: int = 2**20) -> BinaryIO:
        """The same as a stream. Reads raise OSError."""
        return io.BufferedReader(_Stream(self.chunks(name, size)), buffer_size=size)

    def names(self) -> list[str]:
        """Of the files in the folder. Raises OSError."""

        def list_files() -> list[str]:
            files, root = self._connection()
            return [
                entry["name"].rsplit("/", 1)[-1] for entry in files.ls(root, detail=True) if entry["type"] == "file"
            ]

        return sorted(_ask(self.url, list_files))

    def _connection(self) -> tuple[Any, str]:
        """fsspec's file system, and the folder in it.

        Most of them work on a thread of the process that opened them, so a forked worker opens its own. It keeps its parent's as
        well: to close that would close connections that the parent still uses.
        """
        found = self._connections.get(os.getpid())
        if found is None:
            import fsspec

            log = logging.getLogger("gcsfs")
            if log.level == logging.NOTSET:
                # It prints a traceback for each of its attempts. What it raises in the end is told.
                log.setLevel(logging.CRITICAL)
            found = self._connections[os.getpid()] = fsspec.core.url_to_fs(self.url)
        return found


class _Stream(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        piece = self._rest or next(self._pieces, b"")
        given = min(len(buffer), len(piece))
        buffer[:given] = piece[:given]
        self._rest = piece[given:]
        self._position += given
        return given


def _ask(where: str, action: Callable[[], T]) -> T:
    """`action()`, which waits for a server at `where`. What gives no answer in time goes on in a thread that nobody waits for.

    Raises:
        OSError: it failed or gave no answer; names where and why.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(action())
        except BaseException as error:  # handed over to who asked
            answer.set_exception(error)

    threading.Thread(target=run, name="unimo_ds remote", daemon=True).start()
    try:
        return answer.result(_PATIENCE)
    except _failures() as error:
        cause = _cause_of(error) if answer.done() else f"no answer within {_PATIENCE:g} seconds"
        raise OSError(f"{where}: {cause}") from error


def _failures() -> tuple[type[Exception], ...]:
    """OSError and those of `_FAILURES` that can occur here: a library that is not loaded has raised nothing. adlfs tells of a
    missing account by ValueError, gcsfs of some bad requests by that or RuntimeError."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _FAILURES)
    return (OSError, ValueError, RuntimeError, *(kind for kind in found if isinstance(kind, type)))


def _cause_of(error: BaseException) -> str:
    """In one line."""
    if isinstance(error, FileNotFoundError):
        # fsspec says so of every failure to open a file over HTTP; then the cause has the status.
        behind = error.__cause__
        if not isinstance(behind, _failures()) or getattr(behind, "status", None) == 404:
            return "there is no such file"
        error = behind
    said = str(error).strip()
    kind = type(error).__name__
    return f"{said.splitlines()[0]} ({kind})" if said else kind
