"""Writes shards with `webdataset`, and reads one from beginning to end.

A shard is a plain tar of `BASE.EXTENSION` members. BASE is `SHARD-INDEX`, so it is unique in a folder: `webdataset` merges
neighbouring members of one base, and a truncated shard must never be completed by the next one. Bytes are deterministic: no
times, no user names. A shard is written atomically; then `folder.finish_folder` builds `SHARD.index.npz`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.schema import Sample
from unimo_ds.data.storage import member_json, members, tars
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import make_folder, opened_anew

SHARD_SUFFIX = ".tar"
INDEX_SUFFIX = ".index.npz"
_DIGITS = 6


@dataclass(frozen=True)
class StoredSample:
    """A sample with the other things that its shard holds."""

    sample: Sample
    jpeg: bytes | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Notes of the program that wrote it (original file name, image size)."""


def index_path(shard: str | os.PathLike[str]) -> Path:
    """Path of a shard's index: `000000.tar` -> `000000.index.npz`."""
    shard = Path(shard)
    return shard.with_name(shard.name.removesuffix(SHARD_SUFFIX) + INDEX_SUFFIX)


def shard_files(folder: str | os.PathLike[str]) -> list[Path]:
    """All shards of a folder, sorted by name, as in the manifest."""
    return sorted(path for path in Path(folder).glob(f"*{SHARD_SUFFIX}") if not path.name.startswith("."))


def files_of(folder: str | os.PathLike[str], prefix: str) -> list[Path]:
    """The shards of a folder made by a writer with this prefix."""
    own = re.compile(rf"{re.escape(prefix)}-\d{{{_DIGITS}}}{re.escape(SHARD_SUFFIX)}")
    return [path for path in shard_files(folder) if own.fullmatch(path.name)]


class _OpenShard:
    """One shard being written, beside its final path."""

    def __init__(self, path: Path) -> None:
        # webdataset reads this once, at its first import: it disables its shell and pickle code.
        os.environ.setdefault("WDS_SECURE", "1")
        # Imported here because it takes seconds, and only writers need it.
        from webdataset.writer import TarWriter

        self.path = path
        self.stem = path.name.removesuffix(SHARD_SUFFIX)
        self.aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self.num_samples = 0
        with _disk_errors(self.path):
            # Buffered: a raw file may silently write less than it was given.
            self.stream = io.BufferedWriter(opened_anew(self.aside))
        self.writer = TarWriter(self.stream, encoder=False, mtime=0, user="root", group="root", mode=0o444)

    def write(self, content: Mapping[str, bytes]) -> None:
        base = f"{self.stem}-{self.num_samples:0{_DIGITS}d}"
        with _disk_errors(self.path):
            self.writer.write({"__key__": base, **content})
        self.num_samples += 1

    def finish(self) -> None:
        with _disk_errors(self.path):
            self.writer.close()
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            # The index of an older shard of this name must never describe the new one, whatever happens in between.
            index_path(self.path).unlink(missing_ok=True)
            os.replace(self.aside, self.path)

    def abandon(self) -> None:
        """Remove the partial file; after `finish`, do nothing."""
        # Buffered data are not needed, and cannot be written to a full disk.
        with contextlib.suppress(OSError, ValueError):
            self.writer.close()
        with contextlib.suppress(OSError):
            self.stream.close()
        self.aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns a failed write into one sentence."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise UserError(f"cannot write {path}: {error.strerror} ({free} bytes are free there)") from error


def read_shard(path: str | os.PathLike[str], *, pixels: bool = True) -> Iterator[StoredSample]:
    """All samples of a shard in order, from the tar only (no index, no manifest). pixels: as in `members.decode_sample`.

    Raises:
        UserError: the file cannot be read, or is damaged; samples before the damage have been yielded.
    """
    with open_shard(Path(path)) as stream:
        yield from read_samples(stream, os.fspath(path), pixels=pixels)


def read_samples(stream: BinaryIO, where: str, *, pixels: bool = True) -> Iterator[StoredSample]:
    """The same from a stream. where: path or URL of the shard.

    Raises: as above.
    """
    name, base = where.rsplit("/", 1)[-1], ""
    try:
        for base, columns in group_members(tars.walk(stream, max_member_bytes=MAX_MEMBER_BYTES)):
            content = {column: member.content for column, member in columns.items()}
            sample = members.decode_sample(f"{name}:{base}", content, pixels=pixels)
            yield StoredSample(sample, content.get(members.JPEG), member_json.details_of(content[members.JSON]))
    except (tars.BadTar, members.DecodeError, OSError) as error:
        raise unreadable(where, base, error) from None


def unreadable(where: str | Path, base: str, error: tars.BadTar | members.DecodeError | OSError) -> UserError:
    """The error for a shard that could not be read to its end. base: the last sample reached."""
    if isinstance(error, OSError):
        # Errors for a URL contain it.
        return UserError(f"cannot read shard {where}: {error.strerror}" if error.strerror else f"cannot read {error}")
    sample = f" at or behind sample {base!r}" if isinstance(error, members.DecodeError) else ""
    return UserError(f"shard {where} is damaged{sample}: {error}; write it again or leave it out")


def shard_name(prefix: str, number: int) -> str:
    """File name of a source's shard."""
    return f"{prefix}-{number:0{_DIGITS}d}{SHARD_SUFFIX}"


def write_shard(
    path: str | os.PathLike[str],
    samples: Iterable[StoredSample],
    *,
    refused: Callable[[StoredSample, str], None],
) -> int:
    """Write one shard atomically, replacing an existing one. Returns the number of samples; with none there is no shard.

    refused: called with each sample that readers would refuse, and why; the sample is left out.

    Raises:
        UserError: a full or failing disk.
    """
    path = Path(path)
    shard = _OpenShard(path)
    try:
        for stored in samples:
            try:
                content = members.encode_sample(stored.sample, jpeg=stored.jpeg, details=stored.details)
            except members.DecodeError as error:
                refused(stored, str(error))
                continue
            shard.write(content)
        if shard.num_samples:
            shard.finish()
        else:
            index_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    finally:
        shard.abandon()
    return shard.num_samples


def write_shards(
    folder: str | os.PathLike[str], prefix: str, samples: Iterable[StoredSample], *, max_samples: int = 2000
) -> None:
    """Write `PREFIX-000000.tar`, `PREFIX-000001.tar`, ... into a folder, each of `max_samples`, the last of the rest.

    Raises:
        UserError: a sample that readers would refuse, or a full or failing disk; earlier shards stay.
    """
    make_folder(Path(folder))
    for number, some in enumerate(batched(samples, max_samples)):
        write_shard(Path(folder) / shard_name(prefix, number), some, refused=_never)


def rewrite_shard(path: str | os.PathLike[str], transform: Callable[[int, StoredSample], StoredSample]) -> None:
    """Replace a shard by one whose sample i is `transform(i, sample i)`: same count, same order, same keys.

    The shard is replaced atomically and its index removed, so `folder.finish_folder` must follow. JPEGs are copied without
    decoding: features of patches are zero here.

    Raises:
        UserError: the shard cannot be read or written, is damaged (it is left unchanged), or a new sample is not valid.
    """
    changed = (transform(number, stored) for number, stored in enumerate(read_shard(path, pixels=False)))
    write_shard(path, changed, refused=_never)


def _never(stored: StoredSample, reason: str) -> None:
    raise UserError(f"cannot store {stored.sample.key or 'a sample'}: {reason}")


def open_shard(path: Path) -> BinaryIO:
    """The shard's bytes, buffered.

    Raises:
        UserError: missing, not readable, or not a regular file.
    """
    if path.is_symlink() or not path.is_file():
        raise UserError(f"shard {path} is not a regular file")
    try:
        return io.BufferedReader(io.FileIO(path), buffer_size=1 << 20)
    except OSError as error:
        raise UserError(f"cannot open shard {path}: {error.strerror}") from None


def group_members(walk: Iterator[tars.TarMember]) -> Iterator[tuple[str, dict[int, tars.TarMember]]]:
    """Neighbouring members of one base: (base, column of `members.EXTENSIONS` -> member).

    Raises:
        members.DecodeError: a base that recurs after another (interleaved or duplicated samples), the same member twice, or an
            extension that is not on the allow-list (such as a pickle).
    """
    seen: set[str] = set()
    base: str | None = None
    columns: dict[int, tars.TarMember] = {}
    for member in walk:
        if member.base != base:
            if base is not None:
                yield base, columns
            if member.base in seen:
                raise members.DecodeError(f"sample {member.base} comes twice, or its members are interleaved")
            seen.add(member.base)
            base, columns = member.base, {}
        if member.extension not in members.EXTENSIONS:
            raise members.DecodeError(
                f"sample {base} has a member .{member.extension}; only {', '.join(members.EXTENSIONS)} are read"
            )
        column = members.EXTENSIONS.index(member.extension)
        if column in columns:
            raise members.DecodeError(f"sample {base} has .{member.extension} twice")
        columns[column] = member
    if base is not None:
        yield base, columns
