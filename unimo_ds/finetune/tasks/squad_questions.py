"""Question generation from SQuAD 1.1: the question to a passage and an answer. `train-v1.1.json`, `dev-v1.1.json`, or UniLM's
tokenised files `train.pa.tok.txt` ("passage [SEP] answer") with `train.q.tok.txt`.

Recipe of the release: rate 1.25e-5 (base) or 5e-6 (large), 8 on each of 4 V100, 20 epochs, source of 416, target
of 96 tokens, 5 to 48 written, beam 5 with penalty 1.0 (large: 6 with 1.2), label smoothing 0.1, decay 0.01. Published
BLEU-4/METEOR/ROUGE-L: 22.78/25.24/51.34 (base), 24.59/26.39/52.47 (large).

These metrics compare lower-case words and marks as in UniLM's files, including the question mark, which PTB tokens (used for
captions) would leave out. (Of questions with the same line in the source file, the official script compares the last output
alone, with all of them as references; here each output is compared with its own question.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig
from unimo_ds.finetune.files import in_form_of, read_json_items, text_of
from unimo_ds.finetune.line_rows import LineRows
from unimo_ds.finetune.metrics import captions
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune.text_writing import Rows, TextRow, TextWritingTask, row_of_lines
from unimo_ds.finetune_config import FinetuneConfig, GenerationConfig
from unimo_ds.utils.errors import UserError

_SEPARATOR = "[SEP]"
_MARK = re.compile(r'["()?!;]|[,:](?!\d)')
"""Marks that are attached to words in raw texts, and between spaces in tokenised files."""


class SquadQuestions(TextWritingTask):
    name, title, best_metric = "squad-questions", "SQuAD QG", "bleu_4"

    def recipe(self, size: Size) -> Recipe:
        is_base = size == "base"
        generation = GenerationConfig(
            beams=5 if is_base else 6, length_penalty=1.0 if is_base else 1.2, min_tokens=5, max_tokens=48
        )
        return Recipe(
            FinetuneConfig(
                "squad-questions", size, epochs=20, label_smoothing=0.1, max_target_tokens=96, generation=generation
            ),
            learning_rate=1.25e-5 if is_base else 5e-6,
            global_examples=32,
            weight_decay=0.01,
            max_text_tokens=416,
        )

    def names(self, split: str) -> list[tuple[str, ...]]:
        return [(f"{split}.pa.tok.txt", f"{split}.q.tok.txt"), (f"{split}-v1.1.json",), (f"{split}.json",)]

    def settle(self, config: RunConfig, data: Path) -> tuple[RunConfig, Mapping[str, Any]]:
        captions.check_installed()
        return super().settle(config, data)

    def sources_of(self, text: str) -> tuple[str, ...]:
        return passage_and_answer(text, f"the text {text[:60]!r}")

    def rows(self, paths: tuple[Path, ...]) -> Rows:
        return LineRows(paths, _row_of_lines) if len(paths) == 2 else read_squad(paths[0])

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        found, notes = captions.measure(
            [words_of(text) for text in written],
            [[words_of(text) for text in texts] for texts in references],
            tokenised=True,
            meteor=not quick,
        )
        notes["tokenised"] = "lower-case words and marks, as in UniLM's files"
        return {name: found[name] for name in ("bleu_4", "meteor", "rouge_l") if name in found}, notes


def words_of(text: str) -> str:
    """Lower-case words and marks separated by single spaces, as in tokenised texts."""
    return " ".join(_MARK.sub(r" \g<0> ", text.lower()).split())


def passage_and_answer(text: str, name: str) -> tuple[str, str]:
    """Both sides of the last [SEP]; `name` is what an error calls the text."""
    passage, separator, answer = text.rpartition(_SEPARATOR)
    if not separator:
        raise UserError(f"{name} has no {_SEPARATOR} between its passage and its answer")
    return text_of(passage, name), text_of(answer, name)


def _row_of_lines(names: list[str], lines: list[str]) -> TextRow:
    row = row_of_lines(names, lines)
    return TextRow(row.key, passage_and_answer(row.sources[0], row.key), row.references)


def read_squad(path: Path) -> list[TextRow]:
    """One row per question: passage and first answer, then the question.

    Raises:
        UserError: not SQuAD's form, or a question without an answer.
    """
    rows = []
    with in_form_of("SQuAD 1.1", path):
        for article in read_json_items(path, "data"):
            for paragraph in article["paragraphs"]:
                passage = text_of(paragraph["context"], f"{path}: a passage of {article.get('title', '?')!r}")
                for one in paragraph["qas"]:
                    where = f"{path}: question {one['id']}"
                    if not one["answers"]:
                        raise UserError(f"{where} has no answer; this task needs SQuAD 1.1, where each has one")
                    answer = text_of(one["answers"][0]["text"], where)
                    rows.append(TextRow(where, (passage, answer), (text_of(one["question"], where),)))
    return rows


TASK = SquadQuestions()
