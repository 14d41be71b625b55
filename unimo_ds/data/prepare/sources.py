"""Raw corpora, streamed: images in a folder or tar, captions in a TSV, texts in lines. What is skipped is counted and named."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from unimo_ds.data.members import MAX_MEMBER_BYTES
from unimo_ds.utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SENTENCE_END = re.compile(r"[.!?;:]['\")\]]*\s")


@dataclass
class Report:
    """What an import took and what it left, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names of what was left out."""

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def skip(self, reason: str, name: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def lines(self, *, num_names: int = 5) -> list[str]:
        """For a person: every count, and the first names of each reason."""
        lines = [f"{what}: {number}" for what, number in self.counts.items()]
        for reason, names in self.skipped.items():
            more = f" and {len(names) - num_names} more" if len(names) > num_names else ""
            lines.append(f"skipped, {reason}: {len(names)} ({', '.join(names[:num_names])}{more})")
        return lines


class ImageSource:
    """Encoded images of a folder (with its subfolders) or of a tar, one at a time, never extracted."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Raises:
            UserError: neither a folder nor a readable tar.
        """
        self.path = Path(path)
        if not self.path.is_dir() and not (self.path.is_file() and tarfile.is_tarfile(self.path)):
            raise UserError(f"--images {self.path} is neither a folder nor a tar of images")

    def names(self, report: Report | None = None) -> list[str]:
        """Names of all images, relative to the folder or tar, in the order `read` gives them."""
        return [name for name, _ in self._walk(report or Report(), wanted=set())]

    def read(self, *, wanted: set[str] | None = None, report: Report | None = None) -> Iterator[tuple[str, bytes]]:
        """(name, encoded bytes) of the images, of those in `wanted` alone where it is given."""
        for name, data in self._walk(report or Report(), wanted=wanted):
            if data is not None:
                yield name, data

    def _walk(self, report: Report, *, wanted: set[str] | None) -> Iterator[tuple[str, bytes | None]]:
        return (self._walk_folder if self.path.is_dir() else self._walk_tar)(report, wanted)

    def _walk_folder(self, report: Report, wanted: set[str] | None) -> Iterator[tuple[str, bytes | None]]:
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.is_symlink() or not path.is_file():
                report.skip("not a regular file", name)
            elif wanted is not None and name not in wanted:
                yield name, None
            elif path.stat().st_size > MAX_MEMBER_BYTES:
                report.skip(f"larger than {MAX_MEMBER_BYTES} bytes", name)
            else:
                yield name, path.read_bytes()

    def _walk_tar(self, report: Report, wanted: set[str] | None) -> Iterator[tuple[str, bytes | None]]:
        try:
            with tarfile.open(self.path, mode="r|*") as archive:
                for member in archive:
                    if member.isdir() or PurePosixPath(member.name).suffix.lower() not in IMAGE_SUFFIXES:
                        continue
                    name = member.name.removeprefix("./")
                    reason = _refusal(member)
                    if reason is not None:
                        report.skip(reason, name)
                    elif wanted is not None and name not in wanted:
                        yield name, None
                    else:
                        content = archive.extractfile(member)
                        yield name, content.read() if content is not None else b""
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"the tar {self.path} is damaged or cut: {error}; fetch it again") from None


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a tar member is not taken; None: it is."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "a tar member that points outside"
    if not member.isreg():
        return "not a regular file"
    if member.size > MAX_MEMBER_BYTES:
        return f"larger than {MAX_MEMBER_BYTES} bytes"
    return None


def read_lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file; other lines are skipped and named.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    report.skip("a line that is not UTF-8", f"{path.name}:{number}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_captions(path: str | os.PathLike[str], report: Report) -> dict[str, list[str]]:
    """File name -> its captions, from lines `file<TAB>caption`, in the file's order.

    Captions keep every character between their first and last visible one.

    Raises:
        UserError: unreadable, or no line of this form.
    """
    captions: dict[str, list[str]] = {}
    for number, line in read_lines(Path(path), report):
        name, tab, caption = line.partition("\t")
        if not tab or not name.strip():
            if line.strip():
                report.skip("a line that is not file<TAB>caption", f"{Path(path).name}:{number}")
            continue
        mine = captions.setdefault(name.strip().removeprefix("./"), [])
        if caption.strip():
            mine.append(caption.strip())
        else:
            report.skip("an empty caption", f"{Path(path).name}:{number}")
    if not captions:
        raise UserError(f"{path} holds no line of the form file<TAB>caption")
    return captions


def read_names(path: str | os.PathLike[str]) -> set[str]:
    """File names in the first column of a list or TSV."""
    lines = (line.partition("\t")[0].strip() for _, line in read_lines(Path(path), Report()))
    return {line.removeprefix("./") for line in lines if line}


def read_texts(
    path: str | os.PathLike[str], report: Report, *, column: str | None = None, paragraphs: bool = False
) -> Iterator[str]:
    """Texts of a file: one a line, or one a paragraph (lines up to an empty one, joined by spaces).

    column: name of a column in the TSV's header line; None: the whole line is the text.

    Raises:
        UserError: unreadable, or no such column.
    """
    lines = read_lines(Path(path), report)
    position: int | None = None
    if column is not None:
        header = next(lines, (0, ""))[1].split("\t")
        if column not in header:
            raise UserError(f"{path} has no column {column!r} in its first line; it has {', '.join(header)}")
        position = header.index(column)
    waiting: list[str] = []
    for number, line in lines:
        if position is not None:
            fields = line.split("\t")
            if len(fields) <= position:
                report.skip("a line without the column", f"{Path(path).name}:{number}")
                continue
            line = fields[position]
        line = line.strip()
        if not paragraphs:
            if line:
                yield line
        elif line:
            waiting.append(line)
        elif waiting:
            yield " ".join(waiting)
            waiting = []
    if waiting:
        yield " ".join(waiting)


def cut_text(text: str, offsets: Sequence[tuple[int, int]], *, max_tokens: int) -> int:
    """Where to end the first piece of a text of more than `max_tokens` tokens, as a character offset.

    offsets: [n] first and last character of each token. The piece ends behind a sentence where the later half of the window
    has one, else between words, else between characters.
    """
    window = max(offsets[max_tokens][0], 1)
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, window)]
    if ends and ends[-1] > window // 2:
        return ends[-1]
    space = max(text.rfind(mark, 1, window + 1) for mark in " \t\n")
    return space if space > 0 else window
