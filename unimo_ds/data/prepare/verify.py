"""Proves that a data folder is good, or lists everything that is wrong with it.

Every byte of every file in the manifest is hashed, every shard is walked and every sample decoded. If a shard has changed, its
index still has each member's place and checksum, so that damaged samples can be named individually.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.journal import import_journal, unfinished_imports
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.storage import folder as folders
from unimo_ds.data.storage import index, manifest, members, shards
from unimo_ds.data.storage.manifest import FileEntry, ShardEntry
from unimo_ds.utils.errors import UserError

PICKLE_SUFFIXES = (".pkl", ".pickle", ".pyd", ".pt", ".pth", ".joblib", ".dill")
"""Files that some readers would unpickle, and so execute; a data folder must not have any."""


@dataclass(frozen=True)
class Problem:
    """One problem."""

    file: str
    """Its name within the folder."""
    reason: str
    sample: str | None = None
    """The sample's base name, if a single sample is at fault."""

    def __str__(self) -> str:
        return f"{self.file}{f', sample {self.sample}' if self.sample else ''}: {self.reason}"


def verify(folder: str | os.PathLike[str], workers: Workers | None = None) -> list[Problem]:
    """All problems of a data folder, in the order of its files; an empty list proves it good.

    It finds: changed, missing or unlisted files; a flipped byte anywhere, with its sample if it is in one; truncated shards;
    counts, kinds or sizes that differ between manifest, index and shard; samples that are incomplete, interleaved or duplicate,
    within a shard or across shards; member names that lead out of the folder, links and devices; pickles; imports that were
    killed and not continued.

    workers: check shards in parallel; None: only in this process.

    Raises:
        UserError: no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no data folder at {path}")
    names = sorted(inside.name for inside in path.iterdir())
    problems = [*_check_listing(path), *check_pickles(names)]
    try:
        listed = manifest.load_manifest(path)
    except UserError as error:
        # Without a manifest nothing else can be checked.
        return [Problem(manifest.MANIFEST_FILE, str(error)), *problems]
    problems += [problem for entry in listed.files for problem in check_file(path, entry)]
    problems += [*check_names(names, listed), *_check_unfinished(path)]
    tasks = [(path, entry) for entry in listed.shards]
    problems += itertools.chain(*(workers or Workers()).run_all(check_shard, tasks, label="verify"))
    if not problems:
        problems += check_together(path, listed)
    return problems


def check_shard(folder: Path, entry: ShardEntry) -> list[Problem]:
    """Problems of one shard and its index; tokens are not recounted."""
    path = folder / entry.file
    index_file = shards.index_path(path)
    known, problems = _check_index(index_file, entry)
    if not path.is_file() or path.is_symlink():
        return [*problems, Problem(path.name, "is missing or not a regular file")]
    try:
        found = index.scan(path, _NoTokens())
    except UserError as error:
        return [*problems, *_name_damage(path, known, str(error))]
    if found.shard_bytes != entry.bytes or found.shard_sha256 != entry.sha256:
        reason = f"is not the shard that the manifest describes ({found.shard_bytes} bytes of {entry.bytes}; checksum)"
        return [*problems, *_name_damage(path, known, reason)]
    if found.num_samples != entry.samples or found.counts_by_kind() != entry.kinds:
        counts = (
            f"{found.num_samples} samples {found.counts_by_kind()}, the manifest says {entry.samples} {entry.kinds}"
        )
        problems.append(Problem(path.name, f"holds {counts}"))
    if found.counts_by_source() != entry.sources:
        problems.append(
            Problem(path.name, f"holds sources {found.counts_by_source()}, the manifest says {entry.sources}")
        )
    if known is not None and not _same(found, known):
        problems.append(Problem(index_file.name, "does not describe its shard; run `unimo prepare pack`"))
    return problems


class _NoTokens:
    """Placeholder for a tokenizer."""

    vocabulary_size = 0
    fingerprint = ""

    def encode_batch(self, texts: Sequence[str], /) -> list[NDArray[np.int32]]:
        return [np.zeros(0, np.int32)] * len(texts)


def _same(found: index.ShardIndex, known: index.ShardIndex) -> bool:
    names = ["base_names", "source_names", "related_shards"]
    names += ["feature_size", "classes_per_region", "largest_class", "region_tag_sizes"]
    columns = [name for name in index.TEXT_RECORD.names or () if name != "tokens"]
    return (
        np.array_equal(found.samples, known.samples)
        and np.array_equal(found.related_images, known.related_images)
        and all(np.array_equal(found.texts[name], known.texts[name]) for name in columns)
        and all(getattr(found, name) == getattr(known, name) for name in names)
    )


def _check_listing(folder: Path) -> Iterator[Problem]:
    """Links and special files, which do not belong in a data folder."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            yield Problem(path.name, "is a link; a data folder holds its files itself")
        elif not path.is_file() and not path.is_dir():
            yield Problem(path.name, "is a device, pipe or socket")


def check_pickles(names: Iterable[str]) -> list[Problem]:
    reason = "looks like a pickle, which runs code when it is read; remove it"
    return [Problem(name, reason) for name in names if name.lower().endswith(PICKLE_SUFFIXES)]


def check_file(folder: Path, entry: FileEntry) -> list[Problem]:
    """Problems of a file beside the shards."""
    try:
        found = manifest.file_entry(folder / entry.file)
    except UserError as error:
        return [Problem(entry.file, f"is missing or unreadable ({error})")]
    if found == entry:
        return []
    return [Problem(entry.file, f"is not what the manifest describes ({found.bytes} bytes of {entry.bytes}; checksum)")]


def check_names(names: Iterable[str], listed: manifest.Manifest) -> Iterator[Problem]:
    """Files that the manifest needs but does not list, and unlisted shards and indices. names: of all files."""
    named = {entry.file for entry in listed.files}
    for needed in (listed.tokenizer.file, listed.extractor.file if listed.extractor else None):
        if needed is not None and needed not in named:
            yield Problem(needed, "is named by the manifest, but not among its files")
    shard_names = {entry.file for entry in listed.shards}
    index_names = {shards.index_path(name).name for name in shard_names}
    for name in names:
        if name.startswith("."):
            continue
        if name.endswith(shards.SHARD_SUFFIX) and name not in shard_names:
            yield Problem(name, "is not in the manifest; finish the import with `unimo prepare pack`, or remove it")
        elif name.endswith(shards.INDEX_SUFFIX) and name not in index_names:
            yield Problem(name, "is an index without a shard in the manifest; remove it")


def _check_unfinished(folder: Path) -> Iterator[Problem]:
    """Imports of which the folder holds only a part."""
    for source in unfinished_imports(folder):
        journal = import_journal(folder, source).path.relative_to(folder)
        yield Problem(
            str(journal), f"the import of {source} was not finished; run it again, or remove this and {source}-*"
        )


def _check_index(file: Path, entry: ShardEntry) -> tuple[index.ShardIndex | None, list[Problem]]:
    """(the index, or None if it cannot be read; its problems)."""
    try:
        found = manifest.file_entry(file)
        known = index.from_bytes(file.read_bytes(), where=file.name)
    except (UserError, OSError) as error:
        return None, [Problem(file.name, f"cannot be read ({error}); run `unimo prepare pack`")]
    if (found.bytes, found.sha256) != (entry.index_bytes, entry.index_sha256):
        return known, [Problem(file.name, "is not the index that the manifest describes (checksum)")]
    if (known.num_samples, known.shard_sha256, known.shard_bytes) != (entry.samples, entry.sha256, entry.bytes):
        return known, [Problem(file.name, "and the manifest disagree about the shard")]
    return known, []


def _name_damage(path: Path, known: index.ShardIndex | None, reason: str) -> list[Problem]:
    """A problem for the shard, and for each sample whose members differ from the index."""
    problems = [Problem(path.name, reason)]
    if known is None:
        return problems
    with (
        contextlib.suppress(UserError),
        shards.open_shard(path) as stream,
    ):  # if it cannot be opened, `reason` says so
        for base, record in zip(known.bases, known.samples, strict=True):
            for column in np.flatnonzero(record["size"]):
                name = members.EXTENSIONS[column]
                try:
                    stream.seek(int(record["start"]) + int(record["offset"][column]))
                    content = stream.read(int(record["size"][column]))
                except OSError as error:
                    problems.append(Problem(path.name, f"its .{name} cannot be read ({error.strerror})", base))
                    continue
                if len(content) < record["size"][column]:
                    problems.append(Problem(path.name, f"its .{name} is cut", base))
                    break
                if zlib.crc32(content) != record["crc32"][column]:
                    problems.append(Problem(path.name, f"its .{name} is damaged (checksum)", base))
    return problems


def check_together(folder: Path, listed: manifest.Manifest) -> list[Problem]:
    """Problems across shards: duplicate keys, bad references, different sizes."""
    problems, outlines, hashes = [], [], []
    for entry in listed.shards:
        path = folder / entry.file
        one = index.of_shard(path)
        outlines.append(folders.outline_of(path, one))
        hashes.append(np.fromiter(map(hash, one.bases), np.int64, one.num_samples))
        if one.tokenizer_fingerprint != listed.tokenizer.fingerprint:
            problems.append(Problem(path.name, "its index counts another tokenizer's tokens; run `unimo prepare pack`"))
    whole = np.concatenate(hashes)
    if len(np.unique(whole)) < len(whole):
        problems += _name_doubles([one.path for one in outlines])
    try:
        feature_size, classes, largest_class, tag_sizes = folders.common_sizes(outlines)
        folders.check_related(outlines)
    except UserError as error:
        return [*problems, Problem(manifest.MANIFEST_FILE, str(error))]
    if (feature_size, classes) != (listed.feature_size, listed.classes_per_region):
        sizes = f"{listed.feature_size} features and {listed.classes_per_region} classes where the shards have {feature_size}"
        problems.append(Problem(manifest.MANIFEST_FILE, f"says {sizes} and {classes}"))
    if tag_sizes != listed.region_tag_sizes:
        sizes = f"tags of {listed.region_tag_sizes} values where the shards have {tag_sizes}"
        problems.append(Problem(manifest.MANIFEST_FILE, f"says {sizes}"))
    if largest_class >= listed.num_region_classes:
        classes_known = f"num_region_classes={listed.num_region_classes}, a shard holds class {largest_class}"
        problems.append(Problem(manifest.MANIFEST_FILE, f"says {classes_known}"))
    return problems


def _name_doubles(paths: Iterable[Path]) -> Iterator[Problem]:
    """Samples whose name also occurs in another shard."""
    seen: dict[str, str] = {}
    for path in paths:
        for base in index.of_shard(path).bases:
            if base in seen:
                yield Problem(path.name, f"the same sample is in {seen[base]}", base)
            seen[base] = path.name
