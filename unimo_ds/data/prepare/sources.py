"""What readers of raw corpora share: lines of text files, and the report of what was taken and what was left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unimo_ds.utils.errors import UserError


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

    def add(self, other: Report) -> None:
        """Take in what another report holds."""
        for what, number in other.counts.items():
            self.count(what, number)
        for reason, names in other.skipped.items():
            self.skipped.setdefault(reason, []).extend(names)

    def lines(self, *, num_names: int = 5) -> list[str]:
        """For a person: every count, and the first names of each reason."""
        lines = [f"{what}: {number}" for what, number in self.counts.items()]
        for reason, names in self.skipped.items():
            more = f" and {len(names) - num_names} more" if len(names) > num_names else ""
            lines.append(f"skipped, {reason}: {len(names)} ({', '.join(names[:num_names])}{more})")
        return lines


def read_lines(path: Path, report: Report | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file.

    report: names other lines, which are skipped; None: none may be missed.

    Raises:
        UserError: the file cannot be read, or such a line.
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
