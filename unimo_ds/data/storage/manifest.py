"""manifest.json: what a data folder holds, with the checksum of every file, so that a run knows its data before reading any.

The file is canonical: its text is a function of its content, and it contains a checksum of itself, so a change of any byte is
detected. Unknown keys, other types and other versions are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimo_ds.data.schema import SCHEMA_VERSION
from unimo_ds.data.storage.begun_imports import begun_imports
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

MANIFEST_FILE = "manifest.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CURE = "restore it, or remove it and run `unimo prepare pack`"


@dataclass(frozen=True)
class FileEntry:
    """Any file that is neither a shard nor an index."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry:
    file: str
    samples: int
    kinds: dict[str, int]
    """Kind name -> samples."""
    sources: dict[str, int]
    """Source name -> samples."""
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str


@dataclass(frozen=True)
class TokenizerEntry:
    file: str
    fingerprint: str
    vocabulary_size: int


@dataclass(frozen=True)
class ExtractorEntry:
    fingerprint: str
    file: str | None = None
    """None: it has no learned parameters."""


@dataclass(frozen=True)
class Manifest:
    """A data folder. The order of `shards` is the order of the global sample index."""

    shards: tuple[ShardEntry, ...]
    tokenizer: TokenizerEntry
    extractor: ExtractorEntry | None
    feature_size: int
    """0 if no sample has regions."""
    classes_per_region: int
    num_region_classes: int
    files: tuple[FileEntry, ...] = ()
    """Everything else in the folder: tokenizer, extractor, reports."""
    commands: tuple[str, ...] = ()
    """Command lines that made the folder, oldest first."""
    versions: dict[str, str] = field(default_factory=dict)
    region_tag_sizes: tuple[int, ...] = ()
    """For each tag of a region one more than its largest index; not in the file if there are no tags."""

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def totals(self) -> dict[str, int]:
        """Kind name -> samples of the whole folder, for the kinds that occur."""
        totals: dict[str, int] = {}
        for shard in self.shards:
            for kind, count in shard.kinds.items():
                totals[kind] = totals.get(kind, 0) + count
        return totals

    @property
    def fingerprint(self) -> str:
        """Hash, in 16 hexadecimal digits, of all that determines what a run reads: shards, their order and token counts."""
        content = [[shard.file, shard.sha256, shard.index_sha256] for shard in self.shards]
        sizes = [self.feature_size, self.classes_per_region, self.num_region_classes]
        return _digest(json.dumps([content, sizes, self.tokenizer.fingerprint]).encode())[:16]


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a local folder.

    Raises:
        UserError: no folder, no manifest, or as `parse_manifest`.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no data folder at {path}; make one with `unimo prepare import` or `unimo prepare demo`")
    try:
        content = (path / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        inside = sorted(str(found.parent) for found in path.glob(f"*/{MANIFEST_FILE}"))
        if begun := begun_imports(path):
            cure = f"holds an import that was not finished ({', '.join(begun)}); the same `unimo prepare import` again goes on"
        elif any(path.glob("*.tar")):
            cure = f"holds shards but no {MANIFEST_FILE}; finish it with `unimo prepare pack {path}`"
        elif inside:
            cure = f"holds no {MANIFEST_FILE}; name one of the data folders in it: {', '.join(inside)}"
        else:
            cure = f"holds no {MANIFEST_FILE}; it is not a data folder: make one with `unimo prepare import`"
        raise UserError(f"{path} {cure}") from None
    except OSError as error:
        raise UserError(f"cannot read {path / MANIFEST_FILE}: {error.strerror}") from None
    return parse_manifest(content, where=str(path / MANIFEST_FILE))


def manifest_in(folder: Path) -> Manifest | None:
    """That of a local folder, None if there is none. Errors as `load_manifest`."""
    return load_manifest(folder) if (folder / MANIFEST_FILE).exists() else None


def parse_manifest(content: bytes, *, where: str) -> Manifest:
    """A manifest from its bytes.

    Raises:
        UserError: not JSON, another schema version, unknown or missing keys, values of wrong types, file names or checksums
            that lead out of the folder, duplicates, or a wrong checksum; names `where`.
    """
    try:
        record = strict_json.parsed(content)
    except ValueError as error:
        raise UserError(f"{where} is damaged: not JSON ({error}); {_CURE}") from None
    if not isinstance(record, dict) or "schema_version" not in record:
        raise UserError(f"{where} is not a manifest of this program: it has no schema_version")
    version = record.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema version {version!r}; this program reads {SCHEMA_VERSION}: prepare the data again with it"
        )
    record.pop("checksum", None)
    totals = record.pop("totals", None)
    manifest: Manifest = strict_json.typed(Manifest, record, where=where)
    if not manifest.shards:
        raise UserError(f"{where} lists no shards; import something into the folder")
    _check_names(manifest, where)
    if totals != manifest.totals:
        raise UserError(f"{where} has totals {totals} where its shards add up to {manifest.totals}; restore it")
    if serialise(manifest) != content:
        raise UserError(f"{where} was changed after it was written (checksum); {_CURE}")
    return manifest


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Write `manifest.json` atomically. Returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(folder) / MANIFEST_FILE
    write_whole(path, serialise(manifest))
    return path


def forget_shards(folder: Path, names: set[str]) -> None:
    """Remove shards from a folder's manifest, if there is one, before they are deleted on purpose.

    Raises:
        UserError: the manifest is damaged, or the folder cannot be written.
    """
    known = manifest_in(folder)
    if known is None:
        return
    kept = tuple(entry for entry in known.shards if entry.file not in names)
    if kept:
        write_manifest(folder, dataclasses.replace(known, shards=kept))
    else:
        # A manifest without shards describes nothing.
        (folder / MANIFEST_FILE).unlink()


def serialise(manifest: Manifest) -> bytes:
    """The canonical text of a manifest."""
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "totals": manifest.totals,
        **dataclasses.asdict(manifest),
    }
    if not manifest.region_tag_sizes:
        del record["region_tag_sizes"]
    record["checksum"] = _digest(json.dumps(record, sort_keys=True).encode())
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def file_entry(path: Path) -> FileEntry:
    """Name, size and SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileEntry(path.name, stream.tell(), digest)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_names(manifest: Manifest, where: str) -> None:
    listed: list[ShardEntry | FileEntry] = [*manifest.shards, *manifest.files]
    named = [entry.file for entry in listed]
    named_twice = {name for name in named if named.count(name) > 1} if len(set(named)) < len(named) else set()
    if named_twice:
        raise UserError(f"{where} lists {min(named_twice)} twice")
    others = [manifest.tokenizer.file, manifest.extractor.file if manifest.extractor else None]
    for name in (*named, *(other for other in others if other is not None)):
        if not PLAIN_NAME.fullmatch(name):
            raise UserError(f"{where} lists {name!r}, which is not a plain file name inside the folder")
    for entry in listed:
        # The cached copy of a remote file is named by its checksum.
        if not _SHA256.fullmatch(entry.sha256):
            raise UserError(f"{where} lists {entry.sha256!r}, which is not a SHA-256")
    sizes = (
        manifest.feature_size,
        manifest.classes_per_region,
        manifest.num_region_classes,
        *manifest.region_tag_sizes,
    )
    if min(*sizes, *(entry.bytes for entry in listed), *(shard.samples for shard in manifest.shards)) < 0:
        raise UserError(f"{where} has a negative number")
    for shard in manifest.shards:
        if not shard.file.endswith(".tar"):
            raise UserError(f"{where} lists {shard.file!r} as a shard; shards are plain .tar files")
