"""Reads a plain tar strictly, member by member.

Python's `tarfile`, and so `webdataset`, stops silently at a damaged or truncated header and loses the rest of the shard. This
reader accepts only what a shard may hold (regular files with plain names, an end mark, then zeros) and reports all else.
It streams: nothing is ever extracted to disk.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
_END_MARK = bytes(BLOCK)
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_FORBIDDEN = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a directory",
}


class BadTar(ValueError):
    """What is wrong with a tar. `offset` is the byte where reading had to stop."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason, offset)
        self.reason = reason
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.reason} (byte {self.offset})"


@dataclass(frozen=True)
class TarMember:
    """One regular file of a tar."""

    base: str
    """Name up to the first dot: WebDataset's key."""
    extension: str
    """Name after the first dot."""
    offset: int
    """Of its content."""
    content: bytes


def walk(stream: BinaryIO, *, max_member_bytes: int) -> Iterator[TarMember]:
    """Members of a tar in order; the stream is read once, from its position to its end.

    Raises:
        BadTar: damaged or truncated header, truncated content, anything but a regular file with a plain name, a member larger
            than `max_member_bytes` (checked before it is read), a missing end mark, or data after it.
    """
    offset = 0
    while True:
        header = stream.read(BLOCK)
        if header == _END_MARK:
            break
        base, extension, size = _parse_header(header, offset, max_member_bytes)
        padded = -(-size // BLOCK) * BLOCK
        content = stream.read(padded)
        if len(content) < padded:
            raise BadTar(f"the shard is cut inside {base}.{extension}", offset + BLOCK + len(content))
        yield TarMember(base, extension, offset + BLOCK, content[:size])
        if content[size:].strip(b"\0"):
            raise BadTar(f"the padding behind {base}.{extension} is damaged", offset + BLOCK + size)
        offset += BLOCK + padded
    _check_tail(stream, offset + BLOCK)


def _parse_header(header: bytes, offset: int, max_member_bytes: int) -> tuple[str, str, int]:
    """(base, extension, size) of a ustar header block."""
    if len(header) < BLOCK:
        where = "where a member or the end mark should begin" if not header else "inside a header"
        raise BadTar(f"the shard is cut {where}", offset + len(header))
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise BadTar(f"a member's header is damaged: {error}", offset) from None
    if info.type not in _REGULAR:
        what = _FORBIDDEN.get(info.type, f"of tar type {info.type!r}")
        raise BadTar(f"member {info.name!r} is {what}; a shard holds regular files only", offset)
    if not _NAME.fullmatch(info.name):
        raise BadTar(f"member name {info.name!r} is not BASE.EXTENSION in plain letters, digits, '-' and '_'", offset)
    if not 0 <= info.size <= max_member_bytes:
        raise BadTar(f"member {info.name!r} claims {info.size} bytes; the limit is {max_member_bytes}", offset)
    base, _, extension = info.name.partition(".")
    return base, extension, info.size


def _check_tail(stream: BinaryIO, offset: int) -> None:
    """After the first zero block there must be a second one, then only zeros."""
    second = stream.read(BLOCK)
    if second != _END_MARK:
        reason = "the shard is cut inside the end mark" if len(second) < BLOCK else "the end mark is damaged"
        raise BadTar(reason, offset + len(second))
    offset += BLOCK
    while chunk := stream.read(1 << 20):
        if chunk.strip(b"\0"):
            raise BadTar("there is something behind the end mark", offset)
        offset += len(chunk)
