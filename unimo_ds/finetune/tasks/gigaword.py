"""Gigaword headlines. Files of lines, `train.src` with `train.tgt`, or the usual release's train.article.txt with
train.title.txt, valid.article.filter.txt with valid.title.filter.txt, input.txt with task1_ref0.txt.

Recipe of the release: rate 3e-5, 32 on each of 4 V100, 10 epochs, source of 128 and target of 32 tokens, 5 to 32
written, beam 5 with penalty 0.6 (large: 6 with 1.2), label smoothing 0.1, decay 0.01. Published ROUGE-1/2/L: 38.80/19.99/36.27
(base), 39.71/20.37/36.88 (large).
"""

from __future__ import annotations

from pathlib import Path

from unimo_ds.finetune.line_rows import LineRows
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune.text_writing import SummaryTask, row_of_lines
from unimo_ds.finetune_config import FinetuneConfig, GenerationConfig

_FILES: dict[str, list[tuple[str, ...]]] = {
    "train": [("train.src", "train.tgt"), ("train.article.txt", "train.title.txt")],
    "dev": [
        ("dev.src", "dev.tgt"),
        ("valid.src", "valid.tgt"),
        ("valid.article.filter.txt", "valid.title.filter.txt"),
        ("valid.article.txt", "valid.title.txt"),
    ],
    "test": [("test.src", "test.tgt"), ("input.txt", "task1_ref0.txt")],
}


class Gigaword(SummaryTask):
    name, title = "gigaword", "Gigaword"

    def recipe(self, size: Size) -> Recipe:
        is_base = size == "base"
        generation = GenerationConfig(
            beams=5 if is_base else 6, length_penalty=0.6 if is_base else 1.2, min_tokens=5, max_tokens=32
        )
        return Recipe(
            FinetuneConfig(
                "gigaword", size, epochs=10, label_smoothing=0.1, max_target_tokens=32, generation=generation
            ),
            learning_rate=3e-5,
            global_examples=128,
            weight_decay=0.01,
            max_text_tokens=128,
        )

    def names(self, split: str) -> list[tuple[str, ...]]:
        return _FILES[split]

    def rows(self, paths: tuple[Path, ...]) -> LineRows:
        return LineRows(paths, row_of_lines)


TASK = Gigaword()
