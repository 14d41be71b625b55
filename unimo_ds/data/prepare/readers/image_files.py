"""Encoded images in folders and tars, read in place: one positioned read per image, nothing is extracted."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.prepare.readers.files import open_file, read_extent
from unimo_ds.data.prepare.readers.protocol import Item, Pictures, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_OTHER_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
_TOO_LARGE = f"larger than {MAX_MEMBER_BYTES} bytes"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstd begin."""
_LARGEST_HEADER = 64 * 2**10
"""Bytes of a tar's extended header, which holds a long name or PAX records."""
_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, RecursionError)
"""Raised by tarfile; ValueError for numbers that are none or too large, RecursionError for extensions of extensions."""
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Header(tarfile.TarInfo):
    """A header whose extension is of a sensible size: the library reads it whole, in time quadratic in its size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENDED and not 0 <= found.size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"an extended header of {found.size} bytes")
        return found


@dataclass(frozen=True)
class ImageFiles(Pictures):
    """Images in folders (with subfolders) and tars.

    A place is (number of the path, offset, size) for a tar, (number of the path,) for a folder.
    """

    paths: tuple[Path, ...]
    without_suffix: bool = False
    """Also accept files without a suffix, since some downloaders name images so."""

    def items(self, report: Report) -> Iterator[Item]:
        for number, path in enumerate(self.paths):
            item = None
            for item in self._in_folder(number, report) if path.is_dir() else self._in_tar(number, report):
                yield item
            if item is None:
                report.skip("a folder or tar without an image", str(path))

    def _in_tar(self, number: int, report: Report) -> Iterator[Item]:
        for member in members_of_tar(self.paths[number], option="--images"):
            name = member.name.removeprefix("./")
            if not self._is_image(member.name, report):
                continue
            reason = refusal(member)
            if reason is None:
                yield Item(name, (number, member.offset_data, member.size))
            else:
                report.skip(reason, name)

    def _in_folder(self, number: int, report: Report) -> Iterator[Item]:
        for name, file in _files_under(self.paths[number]):
            if file.is_symlink() and file.is_dir():
                report.skip("a link to a folder, which is not followed", name)
            elif not self._is_image(name, report):
                continue
            elif not file.is_file(follow_symlinks=False):
                report.skip("not a regular file", name)
            elif file.stat().st_size > MAX_MEMBER_BYTES:
                report.skip(_TOO_LARGE, name)
            else:
                yield Item(name, (number,))

    def _is_image(self, name: str, report: Report) -> bool:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _OTHER_SUFFIXES:
            report.skip("an image that is neither JPEG, PNG nor WebP", name)
        return suffix in IMAGE_SUFFIXES or (self.without_suffix and not suffix)

    def read(self, items: Sequence[Item], report: Report) -> Iterator[tuple[int, Record]]:
        with ExitStack() as stack:
            tars: dict[int, BinaryIO] = {}
            for i, (name, (number, *extent)) in enumerate(items):
                path = self.paths[number]
                if not extent:
                    try:
                        yield i, Record(name, image=(path / name).read_bytes())
                    except OSError as error:
                        report.skip("an image file that cannot be read", f"{name}: {error.strerror}")
                    continue
                if number not in tars:
                    tars[number] = stack.enter_context(open_file(path))
                yield i, Record(name, image=read_extent(tars[number], path, *extent))


def _files_under(folder: Path, inside: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative name, entry) of all files in a folder and its subfolders, ordered by the parts of their paths."""
    try:
        with os.scandir(folder / inside) as entries:
            inner = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder / inside}: {error.strerror}") from None
    for entry in inner:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_under(folder, f"{inside}{entry.name}/")
        else:
            yield f"{inside}{entry.name}", entry


def members_of_tar(path: Path, *, option: str) -> Iterator[tarfile.TarInfo]:
    """Headers of all members but folders, in order; contents are skipped.

    Raises:
        UserError: not a plain tar, or damaged or truncated.
    """
    with open_file(path) as stream:
        start = stream.read(6)
        if start.startswith(_COMPRESSED):
            raise UserError(
                f"{path} is a compressed tar; unpack it to a plain .tar first (gunzip, bunzip2, unxz or unzstd)"
            )
        stream.seek(0)
        try:
            archive = tarfile.TarFile(fileobj=stream, tarinfo=_Header)
        except _DAMAGE as error:
            raise UserError(f"{option} {path} is neither a folder nor a tar of images ({error})") from None
        try:
            with archive:
                for member in archive:
                    # Headers are not kept: a tar may hold millions.
                    archive.members = []  # type: ignore[attr-defined]
                    if not member.isdir():
                        yield member
                # `tarfile` stops at a damaged or truncated header as silently as at the end marker.
                stream.seek(archive.offset)
                if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"no header at byte {archive.offset}")
        except _DAMAGE as error:
            raise UserError(f"the tar {path} is damaged or cut: {error}; fetch it again") from None


def refusal(member: tarfile.TarInfo) -> str | None:
    """Why a tar member is refused; None: accepted."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "a tar member that points outside"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.size > MAX_MEMBER_BYTES:
        return _TOO_LARGE
    return None
