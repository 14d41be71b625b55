"""What a stage counted and what it skipped: shown at its end, and stored with its work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SHOWN = 5
"""Names shown for each reason."""


@dataclass
class Report:
    """Counts of a stage, and what it skipped, by reason. `vars` of it is JSON."""

    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names of skipped items."""

    @classmethod
    def of(cls, content: dict[str, Any]) -> Report:
        """A stored one."""
        return cls(dict(content["counts"]), {reason: list(names) for reason, names in content["skipped"].items()})

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

    def lines(self) -> list[str]:
        """Readable lines: all counts, and the first names for each reason."""
        lines = [f"{what}: {number}" for what, number in self.counts.items()]
        for reason, names in self.skipped.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"skipped, {reason}: {len(names)} ({', '.join(names[:_SHOWN])}{more})")
        return lines
