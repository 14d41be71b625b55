"""Tasks that choose a label for each example, or predict a value for it. Letters: E examples, K outputs."""

from __future__ import annotations

from collections import Counter
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.metrics.classification import accuracy
from unimo_ds.finetune.model import TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.reads import HEAD
from unimo_ds.finetune.task import Evaluation, Examples, Task
from unimo_ds.finetune_config import FinetuneConfig


class LabelledExamples(Examples, Protocol):
    """`task.Examples` with one right answer each."""

    @property
    def targets_E(self) -> NDArray[np.float64]:
        """[E] index of the label, or the value; nan where the file has none (test sets)."""
        ...


class LabelTask(Task):
    """The shared part of these tasks; each one's files define how its lines are read. By default the metric is accuracy."""

    best_metric = "accuracy"
    reads = HEAD
    labels: tuple[str, ...] = ()
    """In the order of the head's outputs; empty for tasks that predict a value."""

    def measure(self, scores_EK: NDArray[np.float32], targets_E: NDArray[np.float64]) -> dict[str, float]:
        """Metrics of the examples of one part; all have targets."""
        return {"accuracy": accuracy(scores_EK.argmax(1), targets_E)}

    def part_of(self, key: str) -> str:
        """Name of a line's file if the split has several, which are measured separately; empty otherwise."""
        return ""

    def unanswered(self, examples: Examples) -> str | None:
        found = np.flatnonzero(np.isnan(cast(LabelledExamples, examples).targets_E))
        return examples.key(int(found[0])) if len(found) else None

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """Cross-entropy of labels; squared error of a value."""
        scores_SK = output.scores.float()
        if self.labels:
            return functional.cross_entropy(scores_SK, batch.targets[:, 0].long(), reduction="sum")
        return functional.mse_loss(scores_SK, batch.targets, reduction="sum")

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        scores_EK = predict.scores(engine, examples, micro_batch_tokens=config.batch.micro_batch_tokens)
        keys = [examples.key(index) for index in range(len(examples))]
        parts = [self.part_of(key) for key in keys]
        answers = [self.labels[number] for number in scores_EK.argmax(1)] if self.labels else scores_EK[:, 0].tolist()
        predictions, counted = [], Counter[str]()
        for key, part, answer in zip(keys, parts, answers, strict=True):
            official = {"part": part, "index": counted[part], "prediction": answer}
            predictions.append({"key": key, "answer": answer, "official": official})
            counted[part] += 1
        targets_E = cast(LabelledExamples, examples).targets_E
        if np.isnan(targets_E).any():
            return Evaluation({}, predictions, {"metrics": "the file has no labels, so nothing was measured"})
        metrics: dict[str, float] = {}
        part_E = np.array(parts)
        for part in counted:
            is_there = part_E == part
            found = self.measure(scores_EK[is_there], targets_E[is_there])
            metrics |= {f"{name}_{part}" if part else name: value for name, value in found.items()}
        return Evaluation(metrics, predictions, {})
