"""SNLI-VE, visual entailment: `snli_ve_train.jsonl`, `snli_ve_dev.jsonl`, `snli_ve_test.jsonl` (gold_label, sentence2,
Flickr30K_ID), and the photographs as a data folder `images`.

Recipe of the release: both pooled vectors added, a layer of 2048, three labels; rate 1e-5, 10 epochs, 12 (base)
or 4 (large) on each of 16 V100, no decay, second beta 0.999; four adversarial ascents of 0.05 within 0.4, which cost twelve times
as much: finetune.adversarial.steps=0 leaves them out. Published accuracy, development/test: 80.00/79.10 (base), 81.11/80.63
(large).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.files import fingerprint_of, first_file, label_of, read_json_lines, text_of
from unimo_ds.finetune.image_text import AnsweredRow, ImageTextExamples, ImageTextRow, ImageTextTask, open_images
from unimo_ds.finetune.images import ImageNames
from unimo_ds.finetune.metrics.classification import accuracy
from unimo_ds.finetune.model import SumHead, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.task import Evaluation, Examples, Recipe, Size
from unimo_ds.finetune_config import AdversarialConfig, FinetuneConfig
from unimo_ds.utils.errors import UserError

_UNDECIDED = "-"
"""What annotators left open; such lines are no examples."""
_MIDDLE = 2048


class SnliVe(ImageTextTask):
    name, title, best_metric = "snli-ve", "SNLI-VE", "accuracy"
    labels = ("contradiction", "entailment", "neutral")

    def recipe(self, size: Size) -> Recipe:
        adversarial = AdversarialConfig(steps=4, initial_magnitude=0.4, step_size=0.05, limit=0.4)
        return Recipe(
            FinetuneConfig("snli-ve", size, epochs=10, num_outputs=len(self.labels), adversarial=adversarial),
            learning_rate=1e-5,
            global_examples=192 if size == "base" else 64,
            beta2=0.999,
        )

    def settle(self, config: RunConfig, data: Path) -> tuple[RunConfig, Mapping[str, Any]]:
        return config, {}

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> ImageTextExamples:
        path = first_file(data, (f"snli_ve_{split}.jsonl", f"{split}.jsonl"))
        shelf, names = open_images(data, split, config)
        found = ImageTextExamples.of(
            self._rows(path, names),
            shelf,
            tokenizer,
            max_text_tokens=config.data.max_text_tokens,
            target_size=1,
            fingerprint=f"{fingerprint_of([path])}/{shelf.corpus.fingerprint}",
        )
        if not len(found):
            raise UserError(f"{path} holds no example with a label")
        return found

    def _rows(self, path: Path, names: ImageNames) -> Iterator[ImageTextRow]:
        for number, line in read_json_lines(path):
            where = f"{path}:{number}"
            label = str(line.get("gold_label", _UNDECIDED))
            if label == _UNDECIDED:
                continue
            image = names.find(str(line.get("Flickr30K_ID") or line.get("Flikr30kID", "")), where)
            text = text_of(line.get("sentence2", ""), where)
            yield ImageTextRow(AnsweredRow(where, ((0, label_of(label, self.labels, where)),)), image, text)

    def make_head(self, config: RunConfig) -> nn.Module:
        return SumHead(config, num_outputs=len(self.labels), middle=_MIDDLE)

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(output.scores.float(), batch.targets[:, 0].long(), reduction="sum")

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        assert isinstance(examples, ImageTextExamples)
        scores_EK = predict.scores(engine, examples, micro_batch_tokens=config.batch.micro_batch_tokens)
        answers_E = scores_EK.argmax(1)
        predictions = [
            {"key": row.key, "answer": self.labels[answer]}
            for row, answer in zip(examples.rows, answers_E.tolist(), strict=True)
        ]
        right = accuracy(answers_E, [row.targets[0][1] for row in examples.rows])
        return Evaluation({"accuracy": right}, predictions, {})


TASK = SnliVe()
