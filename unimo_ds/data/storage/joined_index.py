"""The indices of all shards joined into arrays over all samples and texts.

For a small corpus they are held in memory. For a large one (the paper's take some 14 GB) they are written once to files in the
cache folder and mapped: all processes of a machine share one copy, which the kernel reads on demand and the next start reuses.
Files are named by a hash of what determines their content, so other data never get them. Processes that map them hold a lock;
without one, they are removed if half written or of an earlier state of the same folders.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from unimo_ds.data.storage import index, members
from unimo_ds.data.storage.cache import cache_folder, refuse_open_to_all
from unimo_ds.data.storage.manifest import ShardEntry
from unimo_ds.data.storage.open_folder import OpenFolder
from unimo_ds.data.storage.remote_files import scheme_of
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

LARGEST_IN_MEMORY = 256 * 2**20
"""Bytes of all indices together above which they are mapped."""
CACHE_FOLDER = "indices"
"""In the cache folder."""
_INDICES_AT_ONCE = 8
"""Read in parallel, since a server or a cluster's file system has latency."""
_AT_ONCE = 1 << 20
"""Bytes read at a time for a checksum; they stay in the processor's cache."""
_VERSION = 2
"""Of the files' format."""

PLACE_RECORD = np.dtype([(name, index.SAMPLE_RECORD[name]) for name in ("start", "offset", "size", "crc32")])
"""Positions of a sample's members in its shard, as in `index.SAMPLE_RECORD`."""
_COLUMNS: dict[str, np.dtype[Any]] = {
    "kinds": np.dtype("u1"),
    "source_ids": np.dtype("<i4"),
    "shard_of": np.dtype("<i4"),
    "num_regions": np.dtype("<i4"),
    "places": PLACE_RECORD,
    "text_start": np.dtype("<i8"),
    "text_role": np.dtype("u1"),
    "text_level": np.dtype("u1"),
    "text_caption": np.dtype("<i4"),
    "text_tokens": np.dtype("<i4"),
    "related_image_start": np.dtype("<i8"),
    "related_image_index": np.dtype("<i8"),
    "base_names": np.dtype("u1"),
    "base_names_start": np.dtype("<i8"),
}
_ABOUT = "about.json"
_PARTIAL = ".partial"

Shards = Sequence[tuple[OpenFolder, ShardEntry]]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class JoinedIndex:
    """Arrays over all n samples in the order of the shards; see `corpus.Corpus`, whose attributes they are."""

    columns: Columns
    """By the names of `_COLUMNS`; places [n]; base_names: concatenated bytes of all shards' `ShardIndex.base_names`, each
    starting at its base_names_start [shards + 1]."""
    has_stored_regions: bool
    """Whether any image has regions that are not patches of its JPEG."""
    in_use: FileIO | None = None
    """Open while files are mapped: it holds their lock."""

    def base_names(self, shard: int) -> list[str]:
        """WebDataset keys within a shard."""
        start, stop = self.columns["base_names_start"][shard : shard + 2].tolist()
        return self.columns["base_names"][start:stop].tobytes().decode().splitlines()


def join(shards: Shards, source_names: Sequence[str], *, cache_dir: str | None, fingerprint: str) -> JoinedIndex:
    """The indices of `shards` joined, each checked against its manifest.

    source_names: of all sources, in the order of their numbers. fingerprint: of all that is read (`Manifest.fingerprint`).

    Raises:
        UserError: as `OpenFolder.load_index`, references to samples that do not exist, or a cache that everybody may write to.
    """
    pieces = _Pieces(shards, source_names)
    if sum(entry.index_bytes for _, entry in shards) <= LARGEST_IN_MEMORY:
        return _in_memory(pieces)
    folders = list(dict.fromkeys(folder for folder, _ in shards))
    sizes = [len(folder.manifest.shards) for folder in folders]
    identity = json.dumps([_VERSION, fingerprint, sizes, list(source_names), [str(one) for one in _COLUMNS.values()]])
    parent = cache_folder(cache_dir) / CACHE_FOLDER
    places = [os.path.abspath(one.location) if scheme_of(one.location) is None else one.location for one in folders]
    try:
        return _mapped(pieces, parent / _short_hash(identity), _short_hash(json.dumps(places)))
    except OSError as error:
        print(
            f"warning: cannot keep the joined indices in {parent} ({error.strerror or error}); every process holds its own "
            "(data.cache_dir names another folder)",
            file=sys.stderr,
            flush=True,
        )
        return _in_memory(pieces)


class _Pieces:
    """The part of the columns from each shard, in order."""

    def __init__(self, shards: Shards, source_names: Sequence[str]) -> None:
        self._shards = shards
        self._sources = {name: number for number, name in enumerate(source_names)}
        self._numbers = {(folder, entry.file): number for number, (folder, entry) in enumerate(shards)}
        self._sizes = np.array([entry.samples for _, entry in shards], np.int64)
        self._first = np.cumsum(self._sizes) - self._sizes
        self.has_stored_regions = False

    def __iter__(self) -> Iterator[Columns]:
        """One piece per shard, after one with the zeros at which running sums start."""
        self.has_stored_regions = False
        texts = images = names = 0
        yield {name: np.zeros(1, _COLUMNS[name]) for name in ("text_start", "related_image_start", "base_names_start")}
        load = [functools.partial(folder.load_index, entry) for folder, entry in self._shards]
        for number, one in enumerate(_ahead(load)):
            samples = one.samples
            self.has_stored_regions |= bool(samples["size"][:, members.FEATURES].any())
            places = np.empty(len(samples), PLACE_RECORD)
            for name in PLACE_RECORD.names or ():
                places[name] = samples[name]
            text_start = texts + np.cumsum(samples["num_texts"], dtype=np.int64)
            image_start = images + np.cumsum(samples["num_related_images"], dtype=np.int64)
            base_names = np.frombuffer(one.base_names.encode(), np.uint8)
            texts, images, names = texts + len(one.texts), images + len(one.related_images), names + len(base_names)
            yield {
                "kinds": samples["kind"],
                "source_ids": self._source_numbers(number, one)[samples["source"]],
                "shard_of": np.full(len(samples), number),
                "num_regions": samples["num_regions"],
                "places": places,
                "text_start": text_start,
                "text_role": one.texts["role"],
                "text_level": one.texts["level"],
                "text_caption": one.texts["caption"],
                "text_tokens": one.texts["tokens"],
                "related_image_start": image_start,
                "related_image_index": self._related(number, one),
                "base_names": base_names,
                "base_names_start": np.array([names]),
            }

    def _source_numbers(self, number: int, one: index.ShardIndex) -> NDArray[np.int32]:
        unknown = [name for name in one.source_names if name not in self._sources]
        if unknown:
            folder, entry = self._shards[number]
            raise UserError(
                f"shard {folder.key_prefix}{entry.file} holds samples of the source {unknown[0]}, of which the manifest does not "
                "speak; run `unimo prepare verify` on the folder"
            )
        return np.array([self._sources[name] for name in one.source_names], np.int32)

    def _related(self, number: int, one: index.ShardIndex) -> NDArray[np.int64]:
        folder, entry = self._shards[number]
        # Shards refer only to shards of their own folder.
        unknown = [name for name in one.related_shards if (folder, name) not in self._numbers]
        if unknown:
            raise UserError(
                f"shard {folder.key_prefix}{entry.file} refers to images in {unknown[0]}, which the manifest does not list"
            )
        table = np.array([self._numbers[folder, name] for name in one.related_shards], np.int64)
        targets = table[one.related_images["shard"]] if len(table) else np.zeros(0, np.int64)
        within = one.related_images["index"].astype(np.int64)
        if (within >= self._sizes[targets]).any():
            raise UserError(f"shard {folder.key_prefix}{entry.file} refers to related images beyond the end of a shard")
        joined: NDArray[np.int64] = self._first[targets] + within
        return joined


def _ahead(load: Iterable[Callable[[], index.ShardIndex]]) -> Iterator[index.ShardIndex]:
    """The results of the calls in order; some later calls run while one result is used."""
    waiting: deque[Future[index.ShardIndex]] = deque()
    with ThreadPoolExecutor(_INDICES_AT_ONCE) as pool:
        for call in load:
            waiting.append(pool.submit(call))
            if len(waiting) > 2 * _INDICES_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _in_memory(pieces: _Pieces) -> JoinedIndex:
    parts: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, kind in _COLUMNS.items()}
    for piece in pieces:
        for name, part in piece.items():
            parts[name].append(part.astype(_COLUMNS[name], copy=False))
    return JoinedIndex({name: np.concatenate(found) for name, found in parts.items()}, pieces.has_stored_regions)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mapped(pieces: _Pieces, folder: Path, places: str) -> JoinedIndex:
    """places: a hash of the data's locations. Raises OSError if the files cannot be written or read, and as
    `refuse_open_to_all`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    refuse_open_to_all(folder.parent)
    found = _open(folder)
    if found is None:
        _make_room(folder, places)
        with open(folder.with_suffix(".lock"), "ab") as lock:
            _lock(lock, fcntl.LOCK_EX)
            found = _open(folder)  # another process may have written it meanwhile
            if found is None:
                _write(pieces, folder, places)
                found = _open(folder)
    if found is None:
        raise OSError(f"{folder} was changed while it was written")
    return found


def _make_room(folder: Path, places: str) -> None:
    """Remove what killed processes left half written, and files for the same places in folders other than `folder`."""
    for left in folder.parent.glob(f"*{_PARTIAL}"):
        with open(folder.parent / f"{left.name.partition('.')[0]}.lock", "ab") as lock:
            if _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(left, ignore_errors=True)
    for older in folder.parent.iterdir():
        if older == folder or older.suffix:  # locks, and what is being written
            continue
        with contextlib.suppress(OSError, UserError), open(older / _ABOUT, "r+b") as lock:
            is_of_places = strict_json.read(older / _ABOUT, dict[str, Any]).get("places") == places
            if is_of_places and _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(older, ignore_errors=True)


def _write(pieces: _Pieces, folder: Path, places: str) -> None:
    """Write all files beside `folder`, then rename them to it when complete, unless another process was faster."""
    aside = Path(tempfile.mkdtemp(_PARTIAL, f"{folder.name}.", folder.parent))
    try:
        lengths, checksums = dict.fromkeys(_COLUMNS, 0), dict.fromkeys(_COLUMNS, 0)
        with contextlib.ExitStack() as stack:
            files: dict[str, IO[bytes]] = {name: stack.enter_context(open(aside / name, "wb")) for name in _COLUMNS}
            for piece in pieces:
                for name, part in piece.items():
                    content = part.astype(_COLUMNS[name], copy=False).tobytes()
                    files[name].write(content)
                    lengths[name] += len(part)
                    checksums[name] = zlib_ng.crc32(content, checksums[name])
        about = {
            "lengths": lengths,
            "crc32": checksums,
            "has_stored_regions": pieces.has_stored_regions,
            "places": places,
        }
        (aside / _ABOUT).write_text(json.dumps(about))
        if _open(folder) is not None:
            return
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)  # damaged
        aside.chmod(0o755)  # other users may read it too
        try:
            aside.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open(folder: Path) -> JoinedIndex | None:
    """The files of an earlier process; None if there are none, or some are damaged."""
    try:
        in_use = FileIO(folder / _ABOUT)
        _lock(in_use, fcntl.LOCK_SH)
        about = strict_json.read(folder / _ABOUT, dict[str, Any])  # after the lock: they may have been removed
        columns = {
            name: _map(folder / name, kind, int(about["lengths"][name]), int(about["crc32"][name]))
            for name, kind in _COLUMNS.items()
        }
        return JoinedIndex(columns, bool(about["has_stored_regions"]), in_use)
    except (FileNotFoundError, KeyError, TypeError, ValueError, UserError):
        return None


def _map(path: Path, kind: np.dtype[Any], length: int, checksum: int) -> NDArray[Any]:
    """
    Raises:
        ValueError: the file has another size or content.
    """
    if path.stat().st_size != length * kind.itemsize or _checksum(path) != checksum:
        raise ValueError(f"{path} is damaged")
    if not length:
        return np.zeros(0, kind)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, kind, "r", shape=(length,)))


def _checksum(path: Path) -> int:
    """By reading, not mapping: mapped pages that a process has touched count as its memory, and sequential reads are faster."""
    buffer, found = bytearray(_AT_ONCE), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found = zlib_ng.crc32(memoryview(buffer)[:count], found)
    return found


def _lock(file: IO[bytes] | FileIO, kind: int) -> bool:
    """Whether the lock was acquired; it is held until the file is closed. False on file systems without locks, where several
    processes may do the same work and nothing is removed."""
    try:
        fcntl.flock(file, kind)
    except OSError:
        return False
    return True
