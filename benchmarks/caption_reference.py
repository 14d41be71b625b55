"""Scores of imperfect captions by pycocoevalcap's own evaluation, with which tests/finetune/test_metrics.py compares.

    python -m venv reference && reference/bin/pip install pycocoevalcap==1.2
    reference/bin/python benchmarks/caption_reference.py tests/finetune/data/imperfect_captions.json

Needs only that environment, with Java, and nothing of this project. `evaluated`: COCOEvalCap.evaluate() over COCO files,
including PTB tokens, without SPICE (it downloads). `scored`: the scorers on the texts' words between spaces, unchanged.
Overwrites the figures in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pycocoevalcap import eval as evaluation
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocotools.coco import COCO


class NoSpice:
    """Replaces SPICE."""

    def method(self) -> str:
        return "none"

    def compute_score(self, references: dict[int, list[str]], written: dict[int, list[str]]) -> tuple[float, list[Any]]:
        return 0.0, []


def evaluated(sets: list[dict[str, Any]]) -> dict[str, float]:
    """The whole evaluation, as in captioning papers."""
    references = {
        "images": [{"id": number} for number in range(len(sets))],
        "annotations": [
            {"id": 100 * number + place, "image_id": number, "caption": text}
            for number, one in enumerate(sets)
            for place, text in enumerate(one["references"])
        ],
    }
    results = [{"image_id": number, "caption": one["written"]} for number, one in enumerate(sets)]
    evaluation.Spice = NoSpice
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        paths = [Path(folder) / name for name in ("references.json", "results.json")]
        for path, content in zip(paths, (references, results), strict=True):
            path.write_text(json.dumps(content))
        coco = COCO(str(paths[0]))
        whole = evaluation.COCOEvalCap(coco, coco.loadRes(str(paths[1])))
        whole.evaluate()
    return {name: float(value) for name, value in whole.eval.items() if name != "SPICE"}


def scored(sets: list[dict[str, Any]]) -> dict[str, float]:
    """Only the scorers."""
    references = {number: one["references"] for number, one in enumerate(sets)}
    written = {number: [one["written"]] for number, one in enumerate(sets)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(references, written)
        rouge, _ = Rouge().compute_score(references, written)
        cider, _ = Cider().compute_score(references, written)
    return {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, 1)} | {
        "ROUGE_L": float(rouge),
        "CIDEr": float(cider),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, help="JSON of sets: written, references")
    path = parser.parse_args().captions
    content = json.loads(path.read_text())
    content["reference"] = {
        "command": f"python benchmarks/caption_reference.py {path}",
        "versions": {name: version(name) for name in ("pycocoevalcap", "pycocotools", "numpy")},
        "evaluated": evaluated(content["sets"]),
        "scored": scored(content["sets"]),
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
