"""VQA v2, questions about COCO's photographs: `v2_OpenEnded_mscoco_train2014_questions.json` with
`v2_mscoco_train2014_annotations.json`, the same of val2014 (`dev`), the questions of test-dev2015 (`test`), and the photographs
as data folders `images/train`, `images/dev`, `images/test`, or one `images`.

The release has no code for it. This project's choice, after UNITER and its kin: the answers that occur at least
nine times in training are the vocabulary (3,129 of them), a linear map of the product of both pooled vectors scores each, binary
cross-entropy against the official accuracy of each answer; 10 epochs of 256, rate 5e-5 (base) or 3e-5 (large), decay 0.01.
Published on test-dev/test-std: 73.79/74.02 (base), 75.06/75.27 (large).

Letters: E examples, A answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.files import fingerprint_of, first_file, read_json, text_of
from unimo_ds.finetune.image_text import ImageTextExamples, ImageTextRow, ImageTextTask, open_images
from unimo_ds.finetune.metrics import questions
from unimo_ds.finetune.model import ProductHead, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.task import Evaluation, Examples, Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.utils.errors import UserError

_PARTS = {"train": "train2014", "dev": "val2014", "test": "test-dev2015"}


class Vqa(ImageTextTask):
    name, title, best_metric = "vqa", "VQA v2", "accuracy"

    def recipe(self, size: Size) -> Recipe:
        return Recipe(
            FinetuneConfig("vqa", size, epochs=10, warmup_share=0.1, answer_min_count=9),
            learning_rate=5e-5 if size == "base" else 3e-5,
            global_examples=256,
            weight_decay=0.01,
        )

    def settle(self, config: RunConfig, data: Path) -> tuple[RunConfig, Mapping[str, Any]]:
        """Count the training answers.

        Raises:
            UserError: none occurs often enough.
        """
        assert config.finetune is not None
        path = _annotations_file(data, "train")
        answers = vocabulary_of(_annotations(path), config.finetune.answer_min_count)
        if not answers:
            raise UserError(
                f"no answer of {path} occurs {config.finetune.answer_min_count} times, so the vocabulary is empty; "
                "lower finetune.answer_min_count"
            )
        return replace(config, finetune=replace(config.finetune, num_outputs=len(answers))), {"answers": answers}

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> ImageTextExamples:
        answers: list[str] = assets.get("answers", [])
        assert config.finetune is not None
        if len(answers) != config.finetune.num_outputs:
            raise UserError(
                f"the checkpoint scores {config.finetune.num_outputs} answers, but its task.json lists {len(answers)}; "
                "restore that file"
            )
        number_of = {answer: number for number, answer in enumerate(answers)}
        shelf, names = open_images(data, split, config)
        path = _questions_file(data, split)
        paths = [path]
        by_question: dict[int, list[str]] = {}
        if split != "test":
            paths.append(_annotations_file(data, split))
            by_question = _annotations(paths[-1])
        rows = []
        for question_id, image_id, question in _questions(path):
            where = f"{path}: question {question_id}"
            if by_question and question_id not in by_question:
                raise UserError(f"{where} has no answers in {paths[-1]}")
            people = by_question.get(question_id, [])
            targets = soft_scores(people, number_of)
            # Nothing to learn from a question none of whose answers can be given; in measuring it counts, as wrong.
            if split == "train" and not targets:
                continue
            text = text_of(question, where)
            rows.append(ImageTextRow(where, names.find(image_id, where), text, targets, tuple(people), question_id))
        if not rows:
            raise UserError(f"{path}: every answer is outside of the vocabulary; lower finetune.answer_min_count")
        return ImageTextExamples(
            rows,
            shelf,
            tokenizer,
            max_text_tokens=config.data.max_text_tokens,
            target_size=len(answers),
            fingerprint=f"{fingerprint_of(paths)}/{shelf.corpus.fingerprint}",
            answers=answers,
        )

    def make_head(self, config: RunConfig) -> nn.Module:
        assert config.finetune is not None
        return ProductHead(config, num_outputs=config.finetune.num_outputs)

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """Binary cross-entropy, summed over answers."""
        return functional.binary_cross_entropy_with_logits(output.scores.float(), batch.targets, reduction="sum")

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        assert isinstance(examples, ImageTextExamples)
        scores_EA = predict.scores(engine, examples, micro_batch_tokens=config.batch.micro_batch_tokens)
        given = [examples.answers[number] for number in scores_EA.argmax(1).tolist()]
        predictions = [
            {"key": row.key, "answer": answer, "official": {"question_id": row.question, "answer": answer}}
            for row, answer in zip(examples.rows, given, strict=True)
        ]
        if not all(row.people for row in examples.rows):
            return Evaluation({}, predictions, {"metrics": "the file has no answers, so nothing was measured"})
        right = [questions.accuracy(answer, row.people) for row, answer in zip(examples.rows, given, strict=True)]
        reachable = [max((score for _, score in row.targets), default=0.0) for row in examples.rows]
        return Evaluation(
            {"accuracy": float(np.mean(right)), "reachable": float(np.mean(reachable))},
            predictions,
            {"reachable": "the accuracy that the best answers of the vocabulary would have"},
        )


def vocabulary_of(people: Mapping[int, Sequence[str]], min_count: int) -> list[str]:
    """Normalised answers that most people of a question gave, of those that occur often enough; the most frequent first."""
    counts = Counter(_most_common(given) for given in people.values())
    frequent = [answer for answer, count in counts.items() if count >= min_count]
    return sorted(frequent, key=lambda answer: (-counts[answer], answer))


def soft_scores(people: Sequence[str], number_of: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """(number, official accuracy) of every answer of the vocabulary that somebody gave."""
    given = [questions.normalise(answer) for answer in people]
    scored = [
        (number_of[answer], questions.accuracy(answer, given)) for answer in dict.fromkeys(given) if answer in number_of
    ]
    return tuple((number, score) for number, score in scored if score > 0)


def _most_common(answers: Sequence[str]) -> str:
    counts = Counter(questions.normalise(answer) for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _questions_file(data: Path, split: str) -> Path:
    return first_file(data, (f"v2_OpenEnded_mscoco_{_PARTS[split]}_questions.json", f"questions_{split}.json"))


def _annotations_file(data: Path, split: str) -> Path:
    return first_file(data, (f"v2_mscoco_{_PARTS[split]}_annotations.json", f"annotations_{split}.json"))


def _questions(path: Path) -> list[tuple[int, int, Any]]:
    """(question, image, what should be its text)."""
    try:
        return [(int(q["question_id"]), int(q["image_id"]), q["question"]) for q in read_json(path)["questions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not in VQA's form ({type(error).__name__}: {error})") from None


def _annotations(path: Path) -> dict[int, list[str]]:
    """Question -> the answers of people."""
    try:
        found = {
            int(one["question_id"]): [str(answer["answer"]) for answer in one["answers"]]
            for one in read_json(path)["annotations"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not in VQA's form ({type(error).__name__}: {error})") from None
    for question, answers in found.items():
        if not answers:
            raise UserError(f"{path}: question {question} has no answers")
    return found


TASK = Vqa()
