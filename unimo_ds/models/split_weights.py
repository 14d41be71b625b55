"""The index of weights split over several files, in transformers' format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.utils import strict_json


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]
    """Name of a tensor -> name of its file."""
    metadata: Any = None


def split_files(index: Path) -> list[Path]:
    """The files named by an index, in its folder.

    Raises:
        UserError: damaged.
    """
    found: _Index = strict_json.read(index, _Index)
    return [index.parent / name for name in sorted({Path(name).name for name in found.weight_map.values()})]
