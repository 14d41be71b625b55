"""An open data folder: its manifest, and its files by name, each checked against the manifest."""

from __future__ import annotations

import functools
import hashlib
import os
from io import FileIO
from pathlib import Path

from unimo_ds.data.storage import cache, index, manifest, shards
from unimo_ds.data.storage.manifest import Manifest, ShardEntry
from unimo_ds.data.storage.remote_files import CURE, RemoteFiles
from unimo_ds.data.storage.retrying import Retries
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.redact import redact


class OpenFolder:
    """One local folder or URL. A limited number of shards stay open; positioned reads make a handle safe for forked processes
    and threads."""

    def __init__(
        self, location: str, *, cache_dir: str | None = None, cache_bytes: int = 50 * 2**30, num_folders: int = 1
    ) -> None:
        """
        num_folders: read together, including this one. They share the number of open files, and if there are several,
        `key_prefix` tells their samples apart.

        Raises:
            UserError: no folder or manifest there, another schema version, or an unsupported kind of URL.
        """
        self.location = location
        self.key_prefix = f"{redact(location.rstrip('/'))}/" if num_folders > 1 else ""
        self.retry = Retries()
        self._storage = cache.open_storage(location, cache_dir=cache_dir, cache_bytes=cache_bytes)
        # An evicted file is closed by the garbage collector once nothing reads from it.
        self._opened = functools.lru_cache(max(1, self._storage.most_open // num_folders))(self._storage.open_local)
        self.manifest: Manifest = load_manifest_at(self._storage, self.retry)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file, first fetched if the folder is remote. Errors as `file_path`."""
        return self.file_path(self.manifest.tokenizer.file)

    def file_path(self, name: str) -> Path:
        """A local path of one of the manifest's other files (tokenizer, extractor, report).

        Raises:
            UserError: the manifest does not list it, or it is missing or has other content.
        """
        known = next((entry for entry in self.manifest.files if entry.file == name), None)
        if known is None:
            raise UserError(f"{self.location} lists no file {name!r} in its manifest")
        try:
            path = self.retry(name, lambda: self._storage.local_path(name, size=known.bytes, sha256=known.sha256))
        except OSError as error:
            raise UserError(f"cannot read {error}") from None
        if manifest.file_entry(path).sha256 != known.sha256:
            raise UserError(
                f"{path} is not what the manifest of {self.location} describes (checksum); restore it, or accept it as it is "
                "with `unimo prepare pack`"
            )
        return path

    def load_index(self, entry: ShardEntry) -> index.ShardIndex:
        """A shard's index, checked against the manifest; in a local folder the shard's size is checked too.

        Raises:
            UserError: missing or changed, or (in a local folder) the shard is missing or truncated.
        """
        name = shards.index_path(entry.file).name
        where = self._storage.describe(name)
        cure = "run `unimo prepare verify` on the folder"
        try:
            content = self.retry(name, lambda: self._storage.read(name))
            if isinstance(self._storage, cache.LocalStorage):
                size = os.stat(self._storage.folder / entry.file).st_size
                if size != entry.bytes:
                    raise UserError(
                        f"shard {self._storage.describe(entry.file)} has {size} bytes, not {entry.bytes}; {cure}"
                    )
        except OSError as error:
            raise UserError(f"cannot read an index or its shard: {error}; {cure}") from None
        if hashlib.sha256(content).hexdigest() != entry.index_sha256:
            raise UserError(f"{where} is not the index that the manifest describes; {cure}")
        one = index.from_bytes(content, where=where)
        if one.num_samples != entry.samples or one.shard_sha256 != entry.sha256:
            raise UserError(f"{where} and the manifest disagree about the shard; {cure}")
        return one

    def shard(self, entry: ShardEntry) -> FileIO:
        """The open shard. Raises OSError."""
        return self._opened(entry.file, size=entry.bytes, sha256=entry.sha256)

    def close(self) -> None:
        """Close the shards this process has opened; they are reopened when needed."""
        self._opened.cache_clear()


def load_manifest_at(storage: cache.Storage | RemoteFiles, retry: Retries) -> Manifest:
    """The manifest of a local folder or a URL.

    Raises:
        UserError: it is missing or cannot be read, or `manifest.parse_manifest` refuses it.
    """
    if isinstance(storage, cache.LocalStorage):
        return manifest.load_manifest(storage.folder)
    try:
        content = retry(manifest.MANIFEST_FILE, lambda: storage.read(manifest.MANIFEST_FILE))
    except OSError as error:
        raise UserError(f"cannot read {error}; {CURE}") from None
    return manifest.parse_manifest(content, where=storage.describe(manifest.MANIFEST_FILE))
