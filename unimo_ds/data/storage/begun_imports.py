"""Unfinished imports: each has a marker file in the data folder until the folder is complete."""

from __future__ import annotations

from pathlib import Path

JOURNALS = ".prepare"
BEGUN = "begun.json"
IMPORT = "import-"


def begun_imports(folder: Path) -> list[str]:
    """Names of their sources."""
    marks = (folder / JOURNALS).glob(f"{IMPORT}*/{BEGUN}")
    return sorted(path.parent.name.removeprefix(IMPORT) for path in marks)
