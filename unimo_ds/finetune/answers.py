"""A fine-tuned model's answers in files: JSON lines, or the form that a task's own evaluation takes.

.tsv            GLUE: `index` and `prediction`; MNLI's two parts in a file each
.json           VQA, CoQA and COCO captions: a list of entries
anything else   JSON lines of key and answer
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimo_ds.utils.errors import UserError

OFFICIAL_FORMS = (".tsv", ".json")


def write(path: Path, predictions: Sequence[dict[str, Any]]) -> None:
    """predictions: of `task.Evaluation`.

    Raises:
        UserError: the task has no such form, or the file cannot be written.
    """
    for file, content in _files(path, predictions).items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from None


def _files(path: Path, predictions: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """The content of each file."""
    if path.suffix not in OFFICIAL_FORMS:
        kept = [{name: value for name, value in one.items() if name != "official"} for one in predictions]
        return {path: "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept)}
    official = [one.get("official") for one in predictions]
    entries = [one for one in official if one is not None and ("index" in one) == (path.suffix == ".tsv")]
    if len(entries) < len(predictions):
        raise UserError(f"this task's answers have no official form in {path.suffix}; give --predictions FILE.jsonl")
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
