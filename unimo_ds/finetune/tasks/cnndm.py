"""CNN/DailyMail summaries. Files of lines, `train.src` with `train.tgt` (or .source with .target, or the pointer-generator's
.txt.src with .txt.tgt.tagged), or `train.jsonl` of article and highlights; `dev` may be called val or valid.
Lines without an article are left out.

Recipe of the release: rate 4e-5 (base) or 2e-5 (large), 8 on each of 4 V100, 20 epochs, source of 512 and target
of 128 tokens, 20 to 128 written, beam 5 with penalty 0.6 (large: 6 with 1.2), no repeated trigram of words, label smoothing
0.1, decay 0.01. Published ROUGE-1/2/L: 42.42/20.12/39.61 (base), 43.51/20.65/40.63 (large).
"""

from __future__ import annotations

import re
from pathlib import Path

from unimo_ds.finetune.files import parse_object, text_of
from unimo_ds.finetune.line_rows import LineRows
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune.text_writing import SummaryTask, TextRow, row_of_lines
from unimo_ds.finetune_config import FinetuneConfig, GenerationConfig

_NAMES = {"train": ("train",), "dev": ("dev", "val", "valid"), "test": ("test",)}
_ENDINGS = ((".src", ".tgt"), (".source", ".target"), (".txt.src", ".txt.tgt.tagged"))
_SENTENCE_TAGS = re.compile(r"\s*</t>\s*(?:<t>\s*)?|<t>\s*")


class CnnDm(SummaryTask):
    name, title = "cnndm", "CNN/DM"

    def recipe(self, size: Size) -> Recipe:
        is_base = size == "base"
        return Recipe(
            FinetuneConfig(
                "cnndm",
                size,
                epochs=20,
                label_smoothing=0.1,
                max_target_tokens=128,
                generation=GenerationConfig(
                    beams=5 if is_base else 6,
                    length_penalty=0.6 if is_base else 1.2,
                    min_tokens=20,
                    max_tokens=128,
                    block_trigrams=True,
                ),
            ),
            learning_rate=4e-5 if is_base else 2e-5,
            global_examples=32,
            weight_decay=0.01,
            max_text_tokens=512,
        )

    def names(self, split: str) -> list[tuple[str, ...]]:
        names = _NAMES[split]
        of_lines = [(name + source, name + target) for name in names for source, target in _ENDINGS]
        return [*((f"{name}.jsonl",) for name in names), *of_lines]

    def rows(self, paths: tuple[Path, ...]) -> LineRows:
        return LineRows(paths, _row_of_lines if len(paths) == 2 else _row_of_object)


def _row_of_lines(names: list[str], lines: list[str]) -> TextRow | None:
    """None if the article is missing, as for 114 in the collection, which the collection's own code leaves out."""
    if not lines[0].strip():
        return None
    row = row_of_lines(names, lines)
    return TextRow(row.key, row.sources, (sentences_as_lines(row.references[0]),))


def _row_of_object(names: list[str], lines: list[str]) -> TextRow | None:
    if not lines[0].strip():
        return None
    row = parse_object(lines[0], names[0])
    if not str(row.get("article")).strip():
        return None
    texts = [text_of(row.get(key, ""), names[0]) for key in ("article", "highlights")]
    return _row_of_lines(names * 2, texts)


def sentences_as_lines(summary: str) -> str:
    """A summary with one sentence per line: `<t> a </t> <t> b </t>` becomes "a" and "b"."""
    return _SENTENCE_TAGS.sub("\n", summary).strip()


TASK = CnnDm()
