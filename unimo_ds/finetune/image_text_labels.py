"""Tasks that choose a label for an image and a text. Each task's file defines how its lines are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.files import fingerprint_of
from unimo_ds.finetune.image_text import ImageTextExamples, ImageTextRow, find_images, open_images
from unimo_ds.finetune.images import ImageNames
from unimo_ds.finetune.metrics.classification import accuracy
from unimo_ds.finetune.model import ProductHead, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.reads import HEAD
from unimo_ds.finetune.task import Evaluation, Examples, Task
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.utils.errors import UserError


class ImageTextLabelTask(Task):
    """The shared part of these tasks."""

    best_metric = "accuracy"
    reads = HEAD
    labels: tuple[str, ...] = ()
    """In the order of the head's outputs."""

    def file(self, data: Path, split: str) -> Path:
        raise NotImplementedError

    def read(self, path: Path, names: ImageNames) -> Iterator[ImageTextRow]:
        """The examples; those without a label have no targets."""
        raise NotImplementedError

    def measure(self, scores_EK: NDArray[np.float32], labels_E: NDArray[np.float64]) -> dict[str, float]:
        return {"accuracy": accuracy(scores_EK.argmax(1), labels_E)}

    def find_images(self, data: Path, split: str) -> Corpus:
        return find_images(data, split)

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> ImageTextExamples:
        path = self.file(data, split)
        shelf, names = open_images(data, split, config)
        found = ImageTextExamples.of(
            self.read(path, names),
            shelf,
            tokenizer,
            max_text_tokens=config.data.max_text_tokens,
            target_size=1,
            fingerprint=f"{fingerprint_of([path])}/{shelf.corpus.fingerprint}",
        )
        if not len(found):
            raise UserError(f"{path} holds no example")
        return found

    def make_head(self, config: RunConfig) -> nn.Module:
        return ProductHead(config, num_outputs=len(self.labels))

    def unanswered(self, examples: Examples) -> str | None:
        assert isinstance(examples, ImageTextExamples)
        return next((row.key for row in examples.rows if not row.targets), None)

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(output.scores.float(), batch.targets[:, 0].long(), reduction="sum")

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        assert isinstance(examples, ImageTextExamples)
        scores_EK = predict.scores(engine, examples, micro_batch_tokens=config.batch.micro_batch_tokens)
        rows = list(examples.rows)
        predictions = [
            {"key": row.key, "answer": self.labels[answer]}
            for row, answer in zip(rows, scores_EK.argmax(1).tolist(), strict=True)
        ]
        if self.unanswered(examples) is not None:
            return Evaluation({}, predictions, {"metrics": "the file has no labels, so nothing was measured"})
        return Evaluation(self.measure(scores_EK, np.array([row.targets[0][1] for row in rows])), predictions, {})
