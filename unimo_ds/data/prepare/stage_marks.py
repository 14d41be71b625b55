"""Which stages a folder has been through, so that a finished one is not done again.

The marks lie in a hidden file beside the shards: a stage with its options, and the fingerprint that the folder had when the
stage was done. Whatever changes a shard afterwards makes the mark void.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from unimo_ds.data import manifest
from unimo_ds.data.prepare.journal import JOURNALS, read_json_object, write_json

_MARKS = "done.json"


def identity(options: Any) -> str:
    """16 hexadecimal digits over options that JSON can hold."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_done(folder: Path, stage: str, options: Any) -> bool:
    """Whether the folder is as this stage, with these options, left it."""
    mark = _marks(folder).get(stage)
    return mark is not None and mark == [identity(options), manifest.load_manifest(folder).fingerprint]


def was_done(folder: Path, stage: str) -> bool:
    """Whether the folder is as this stage left it, whatever its options were."""
    mark = _marks(folder).get(stage)
    return mark is not None and mark[1] == manifest.load_manifest(folder).fingerprint


def mark_done(folder: Path, stage: str, options: Any) -> None:
    """Record that the stage has just been finished."""
    (folder / JOURNALS).mkdir(exist_ok=True)
    mark = [identity(options), manifest.load_manifest(folder).fingerprint]
    write_json(folder / JOURNALS / _MARKS, {**_marks(folder), stage: mark})


def _marks(folder: Path) -> dict[str, list[str]]:
    content = read_json_object(folder / JOURNALS / _MARKS)
    return content if isinstance(content, dict) else {}
