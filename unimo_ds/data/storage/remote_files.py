"""Files below a URL, through fsspec's clients. Each call ends in bounded time or fails with an OSError that says where and why.

The clients' own retries multiply: if a server accepts connections but never answers, s3fs makes five attempts of five attempts
of botocore, fifteen seconds each.
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
"""Supported URL schemes, and the package that reads each, in the version tested (as in pyproject.toml). Never a shell
(`pipe:`), never a chain of file systems (`a::b`)."""
CURE = "check the address, the endpoint and the credentials"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_CHUNK = 16 * 2**20
"""Bytes per request."""
_PATIENCE = 60.0
"""Seconds for one request, including the client's own retries."""
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
"""Raised by the clients and their libraries where a file system would raise OSError."""


def scheme_of(location: str) -> str | None:
    """The scheme if `location` is a URL, supported or not; else None."""
    found = _SCHEME.match(location)
    return None if found is None else found[1]


class RemoteFiles:
    """The files of one folder, by name. May be used by forked processes and by threads."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            UserError: an unsupported kind of URL, or its client is not installed or refuses its settings.
        """
        self.url = url.rstrip("/")
        scheme = scheme_of(url)
        if scheme not in CLIENTS or "::" in url:
            raise UserError(
                f"cannot read data from {url!r}: it must be a local folder or a URL of {', '.join(CLIENTS)}"
            )
        self._connections: dict[int, tuple[Any, str]] = {}
        try:
            # Here, since local runs do not need it, and before the timeout starts: importing takes long on a busy file system.
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
        """A file in pieces of `size` bytes, one request each. Raises OSError."""

        def open_file() -> Any:
            files, root = self._connection()
            return files.open(f"{root}/{name}", "rb", cache_type="none")

        with _ask(self.describe(name), open_file) as source:

            def read() -> bytes:
                # size is None if a web server does not state it. gcsfs splits a request, and fails if a part is past the end.
                wanted = size if source.size is None else min(size, source.size - source.tell())
                piece: bytes = source.read(wanted)
                return piece

            while chunk := _ask(self.describe(name), read):
                yield chunk

    def open(self, name: str, size: int = 2**20) -> BinaryIO:
        """The same as a stream. Reads raise OSError."""
        return io.BufferedReader(_Stream(self.chunks(name, size)), buffer_size=size)

    def names(self) -> list[str]:
        """Names of the files in the folder. Raises OSError."""

        def list_files() -> list[str]:
            files, root = self._connection()
            return [
                entry["name"].rsplit("/", 1)[-1] for entry in files.ls(root, detail=True) if entry["type"] == "file"
            ]

        return sorted(_ask(self.url, list_files))

    def _connection(self) -> tuple[Any, str]:
        """fsspec's file system, and the folder in it.

        Most use a thread of the process that opened them, so a forked worker opens its own. It also keeps its parent's: closing
        that would close connections that the parent still uses.
        """
        found = self._connections.get(os.getpid())
        if found is None:
            import fsspec

            log = logging.getLogger("gcsfs")
            if log.level == logging.NOTSET:
                # It prints a traceback for each attempt. The error that it finally raises is reported.
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
    """`action()`, which waits for a server at `where`. If it times out, its daemon thread is left running.

    Raises:
        OSError: it failed or timed out; says where and why.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(action())
        except BaseException as error:  # passed to the caller
            answer.set_exception(error)

    threading.Thread(target=run, name="unimo_ds remote", daemon=True).start()
    try:
        return answer.result(_PATIENCE)
    except _failures() as error:
        cause = _cause_of(error) if answer.done() else f"no answer within {_PATIENCE:g} seconds"
        raise OSError(f"{where}: {cause}") from error


def _failures() -> tuple[type[Exception], ...]:
    """OSError and those of `_FAILURES` that can occur: a library that is not loaded has raised nothing. adlfs raises ValueError
    for a missing account; gcsfs raises it or RuntimeError for some bad requests."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in _FAILURES)
    return (OSError, ValueError, RuntimeError, *(kind for kind in found if isinstance(kind, type)))


def _cause_of(error: BaseException) -> str:
    """In one line."""
    if isinstance(error, FileNotFoundError):
        # fsspec raises this for every failure to open a file over HTTP; its cause has the status.
        behind = error.__cause__
        if not isinstance(behind, _failures()) or getattr(behind, "status", None) == 404:
            return "there is no such file"
        error = behind
    said = str(error).strip()
    kind = type(error).__name__
    return f"{said.splitlines()[0]} ({kind})" if said else kind
