"""VQA v2, questions about COCO's photographs: `v2_OpenEnded_mscoco_train2014_questions.json` with
`v2_mscoco_train2014_annotations.json`, the same of val2014 (`dev`), the questions of test-dev2015 or test2015 (`test`), and the
photographs as data folders `images/train`, `images/dev`, `images/test`, or one `images`.

The release has no code for it. This project follows UNITER and similar models: the answers that occur at least nine times
in training are the vocabulary (with the validation answers, which those models train on as well, they are 3,129), a linear map
of the product of both pooled vectors scores each, binary cross-entropy against the official accuracy of each answer; 10 epochs
of 256, rate 5e-5 (base) or 3e-5 (large), decay 0.01. Published on test-dev/test-std: 73.79/74.02 (base), 75.06/75.27 (large).

Letters: E examples, A answers.
"""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.columns import Ragged
from unimo_ds.finetune.files import first_file, in_form_of, plain_text, read_json_items, text_of
from unimo_ds.finetune.image_text import AnsweredRow, ImageTextExamples, ImageTextRow, find_images
from unimo_ds.finetune.images import ImageNames
from unimo_ds.finetune.metrics import questions
from unimo_ds.finetune.model import ProductHead, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.reads import ANSWERS, HEAD
from unimo_ds.finetune.task import Evaluation, Examples, Recipe, Size, Task
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

_PARTS = {"train": ("train2014",), "dev": ("val2014",), "test": ("test-dev2015", "test2015")}


class Vqa(Task):
    name, title, best_metric = "vqa", "VQA v2", "accuracy"
    official_form = ".json"
    reads = (*HEAD, *ANSWERS)

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
        path = _annotations_file(data, "train")
        answers = vocabulary_of(_People(path).everyone(), config.finetuning.answer_min_count)
        if not answers:
            raise UserError(
                f"no answer of {path} occurs {config.finetuning.answer_min_count} times, so the vocabulary is empty; "
                "lower finetune.answer_min_count"
            )
        return replace(config, finetune=replace(config.finetuning, num_outputs=len(answers))), {"answers": answers}

    def find_images(self, data: Path, split: str) -> Corpus:
        return find_images(data, split)

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> ImageTextExamples:
        answers: list[str] = strict_json.typed(list[str], assets.get("answers", []), where="task.json: answers")
        if len(answers) != config.finetuning.num_outputs:
            raise UserError(
                f"the checkpoint scores {config.finetuning.num_outputs} answers, but its task.json lists {len(answers)}; "
                "restore that file"
            )
        number_of = {answer: number for number, answer in enumerate(answers)}
        path = _questions_file(data, split)
        people = None if split == "test" else _People(_annotations_file(data, split))
        read = functools.partial(_rows, path, people, number_of=number_of, must_be_answerable=split == "train")
        paths = [path] if people is None else [path, people.path]
        found = ImageTextExamples.open(
            read,
            paths,
            data,
            split,
            tokenizer=tokenizer,
            config=config,
            target_size=len(answers),
            answers=answers,
        )
        if not len(found):
            raise UserError(f"{path}: every answer is outside of the vocabulary; lower finetune.answer_min_count")
        return found

    def make_head(self, config: RunConfig) -> nn.Module:
        return ProductHead(config, num_outputs=config.finetuning.num_outputs)

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
        reachable = [
            max((questions.accuracy(examples.answers[place], row.people) for place, _ in row.targets), default=0.0)
            for row in examples.rows
        ]
        return Evaluation(
            {"accuracy": float(np.mean(right)), "reachable": float(np.mean(reachable))},
            predictions,
            {"reachable": "the accuracy that the best answers of the vocabulary would have"},
        )


def _rows(
    path: Path, people: _People | None, names: ImageNames, *, number_of: Mapping[str, int], must_be_answerable: bool
) -> Iterator[ImageTextRow]:
    for question, image, asked in _questions(path):
        where = f"{path}: question {question}"
        given = () if people is None else people.of(question)
        if given is None:
            raise UserError(f"{where} has no answers in {people}")
        targets = soft_scores(given, number_of)
        # A question without an answer in the vocabulary teaches nothing; in a measurement it counts as wrong.
        if must_be_answerable and not targets:
            continue
        text = text_of(asked, where)
        yield ImageTextRow(AnsweredRow(where, targets, given, question), names.find(image, where), text)


def vocabulary_of(people: Iterable[Sequence[str]], min_count: int) -> list[str]:
    """Normalised answers that are the most common one of at least `min_count` questions; the most frequent first.

    people: the annotators' answers to each question.
    """
    counts = Counter(map(_most_common, people))
    frequent = [answer for answer, count in counts.items() if count >= min_count]
    return sorted(frequent, key=lambda answer: (-counts[answer], answer))


def soft_scores(people: Sequence[str], number_of: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """(index, official accuracy) of every answer in the vocabulary that an annotator gave."""
    given = [questions.normalise(answer) for answer in people]
    scored = [
        (number_of[answer], questions.accuracy(answer, given)) for answer in dict.fromkeys(given) if answer in number_of
    ]
    return tuple((number, score) for number, score in scored if score > 0)


def _most_common(answers: Sequence[str]) -> str:
    counts = Counter(questions.normalise(answer) for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _questions_file(data: Path, split: str) -> Path:
    official = [f"v2_OpenEnded_mscoco_{part}_questions.json" for part in _PARTS[split]]
    return first_file(data, (*official, f"questions_{split}.json"))


def _annotations_file(data: Path, split: str) -> Path:
    return first_file(data, (f"v2_mscoco_{_PARTS[split][0]}_annotations.json", f"annotations_{split}.json"))


def _questions(path: Path) -> Iterator[tuple[int, int, Any]]:
    """(question, image, text), the text unchecked."""
    with in_form_of("VQA", path):
        for one in read_json_items(path, "questions"):
            yield _number(one["question_id"]), _number(one["image_id"]), one["question"]


def _number(value: Any) -> int:
    """An id, which some files give as a text. May raise TypeError, ValueError or OverflowError."""
    number = int(np.int64(int(value)))
    if not isinstance(value, str) and number != value:
        raise ValueError(f"{value} is no whole number")
    return number


def _answer(value: Any, where: str) -> str:
    """The answer's text; a number is accepted in its place."""
    return plain_text(str(value) if type(value) in (int, float) else value, where)


class _People:
    """The annotators' answers to each question: indices of the distinct answers, by question."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: not in VQA's form, or a question without answers, or with two lists of them.
        """
        self.path, self._answers = path, Ragged("i")
        number_of: dict[str, int] = {}
        ids = array("q")
        with in_form_of("VQA", path):
            for one in read_json_items(path, "annotations"):
                ids.append(_number(one["question_id"]))
                given = [_answer(answer["answer"], f"{path}: question {ids[-1]}") for answer in one["answers"]]
                if not given:
                    raise UserError(f"{path}: question {ids[-1]} has no answers")
                self._answers.append([number_of.setdefault(answer, len(number_of)) for answer in given])
        self._texts = list(number_of)
        self._order = np.argsort(np.array(ids), kind="stable")
        self._ids = np.array(ids)[self._order]
        twice = np.flatnonzero(np.diff(self._ids) == 0)
        if len(twice):
            raise UserError(f"{path}: question {self._ids[twice[0]]} has answers twice; leave one of them")

    def __str__(self) -> str:
        return str(self.path)

    def of(self, question: int) -> tuple[str, ...] | None:
        """None if the question is not there."""
        place = int(np.searchsorted(self._ids, question, side="right")) - 1
        return None if place < 0 or self._ids[place] != question else self._row(place)

    def everyone(self) -> Iterator[tuple[str, ...]]:
        return map(self._row, range(len(self._ids)))

    def _row(self, place: int) -> tuple[str, ...]:
        return tuple(self._texts[number] for number in self._answers[int(self._order[place])].tolist())


TASK = Vqa()
