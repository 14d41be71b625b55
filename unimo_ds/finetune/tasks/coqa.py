"""CoQA, answering questions of a conversation about a passage: `coqa-train-v1.0.json`, `coqa-dev-v1.0.json`.

The source is the passage and the conversation up to the question; every token has a role and a turn, whose embeddings are
added to its own (`data/conversation.py`). Recipe of the release: rate 1e-5 (base) or 8e-6 (large), 8 on each of 4
V100, 20 epochs, source of 480 and target of 32 tokens, up to 30 written, beam 3 without length penalty, label smoothing 0.1,
decay 0.01. Published F1 on the development set: 80.2 (base), 84.9 (large). The release lays the source out otherwise: positions
begin anew with every text, questions and answers are turns of their own, roles alternate so that the last question has 1, [CLS]
belongs to the conversation, and written tokens have the tags 0 and 0; here they have no tag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.data.conversation import NUM_ROLES, NUM_TURNS, lay_out
from unimo_ds.data.inputs import clean_sequence
from unimo_ds.data.schema import SequenceInput, SequenceRole
from unimo_ds.finetune.files import in_form_of, plain_text, read_json_items, text_of
from unimo_ds.finetune.metrics.conversation import turn_f1
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune.text_writing import TextRow, TextToText, TextWritingTask
from unimo_ds.finetune_config import FinetuneConfig, GenerationConfig
from unimo_ds.utils.errors import UserError


class CoqaExamples(TextToText):
    """Rows whose source is the passage, then question, answer, ..., question."""

    def prompt(self, number: int, *, seed: int = 0) -> SequenceInput:
        passage, *turns = (self._tokenizer.encode(text) for text in self.rows[number].sources)
        text, tags = lay_out(passage, turns, max_tokens=self._max_source)
        sequence = clean_sequence(role=SequenceRole.SINGLE_TEXT, seed=seed, text=text)
        return dataclasses.replace(sequence, token_tags=tags)


class Coqa(TextWritingTask):
    name, title, best_metric = "coqa", "CoQA", "f1"
    official_form = ".json"
    tag_sizes = (NUM_ROLES, NUM_TURNS)
    examples_kind = CoqaExamples

    def recipe(self, size: Size) -> Recipe:
        generation = GenerationConfig(beams=3, length_penalty=0.0, min_tokens=0, max_tokens=30)
        return Recipe(
            FinetuneConfig("coqa", size, epochs=20, label_smoothing=0.1, max_target_tokens=32, generation=generation),
            learning_rate=1e-5 if size == "base" else 8e-6,
            global_examples=32,
            weight_decay=0.01,
            max_text_tokens=480,
        )

    def names(self, split: str) -> list[tuple[str, ...]]:
        return [(f"coqa-{split}-v1.0.json",), (f"{split}.json",)]

    def rows(self, paths: tuple[Path, ...]) -> list[TextRow]:
        (path,) = paths
        with in_form_of("CoQA", path):
            return [row for story in read_json_items(path, "data") for row in _turns(story, path)]

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        return {"f1": float(np.mean([turn_f1(*one) for one in zip(written, references, strict=True)]))}, {}


def _turns(story: dict[str, Any], path: Path) -> list[TextRow]:
    where = f"{path}: story {story['id']}"
    conversation = [text_of(story["story"], where)]
    others = list(story.get("additional_answers", {}).values())
    rows = []
    if len(story["questions"]) != len(story["answers"]):
        raise UserError(f"{where} has {len(story['questions'])} questions and {len(story['answers'])} answers")
    for number, (question, answer) in enumerate(zip(story["questions"], story["answers"], strict=True)):
        turn = f"{where}, turn {number + 1}"
        conversation.append(text_of(question["input_text"], turn))
        wanted = text_of(answer["input_text"], turn)
        references = (wanted, *(plain_text(other[number]["input_text"], turn) for other in others))
        official = {"id": story["id"], "turn_id": question["turn_id"]}
        rows.append(TextRow(turn, tuple(conversation), references, official))
        conversation.append(wanted)
    return rows


TASK = Coqa()
