"""Writes a fine-tuned model's answers to files: JSON lines, or the form that a task's official evaluation takes.

.tsv            GLUE: `index` and `prediction`; MNLI's two parts in separate files
.json           VQA, CoQA and COCO captions: a list of entries
anything else   JSON lines of key and answer
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimo_ds.utils.errors import UserError

OFFICIAL_FORMS = (".tsv", ".json")


def check(path: Path, official_form: str) -> None:
    """Check, before hours of measuring, that the answers can be written; creates the folder.

    official_form: `Task.official_form`.

    Raises:
        UserError: the task has no answers of this form, or the file cannot be written.
    """
    if path.suffix in OFFICIAL_FORMS and path.suffix != official_form:
        raise UserError(f"this task's answers have no official form in {path.suffix}; give --predictions FILE.jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: it is a folder, or lies in one that is not to be written; give a file")


def write(path: Path, predictions: Sequence[dict[str, Any]]) -> None:
    """predictions: `task.Evaluation.predictions`.

    Raises:
        UserError: the file cannot be written.
    """
    for file, content in _files(path, predictions).items():
        try:
            file.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from None


def _files(path: Path, predictions: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """The content of each file."""
    if path.suffix not in OFFICIAL_FORMS:
        kept = [{name: value for name, value in one.items() if name != "official"} for one in predictions]
        return {path: "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept)}
    entries = [one["official"] for one in predictions]
    if path.suffix == ".json":
        return {path: json.dumps(entries, ensure_ascii=False) + "\n"}
    parts = list(dict.fromkeys(one["part"] for one in entries))
    return {
        path.with_stem(f"{path.stem}_{part}") if part else path: "".join(
            [
                "index\tprediction\n",
                *(f"{one['index']}\t{one['prediction']}\n" for one in entries if one["part"] == part),
            ]
        )
        for part in parts
    }
