"""Shared by readers of raw corpora: lines of text files, and the report of imported and skipped items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unimo_ds.utils.errors import UserError


@dataclass
class Report:
    """Counts of an import, and what it skipped, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names of skipped items."""

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def skip(self, reason: str, name: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def add(self, other: Report) -> None:
        """Add the contents of another report."""
        for what, number in other.counts.items():
            self.count(what, number)
        for reason, names in other.skipped.items():
            self.skipped.setdefault(reason, []).extend(names)

    def lines(self, *, num_names: int = 5) -> list[str]:
        """Readable lines: all counts, and the first names for each reason."""
        lines = [f"{what}: {number}" for what, number in self.counts.items()]
        for reason, names in self.skipped.items():
            more = f" and {len(names) - num_names} more" if len(names) > num_names else ""
            lines.append(f"skipped, {reason}: {len(names)} ({', '.join(names[:num_names])}{more})")
        return lines


def read_lines(path: Path, report: Report | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file.

    report: lists lines that are not UTF-8, which are skipped; None: they are errors.

    Raises:
        UserError: the file cannot be read, or, without a report, a line is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    if report is None:
                        raise UserError(f"{path}:{number} is not UTF-8; convert the file") from None
                    report.skip("a line that is not UTF-8", f"{path.name}:{number}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
