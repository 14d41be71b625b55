"""MNLI, entailment between two sentences (GLUE): `train.tsv`, `dev_matched.tsv`, `dev_mismatched.tsv`; columns sentence1,
sentence2, gold_label.

Recipe of the release: 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5; taken here: 32 and 2e-5. Published:
86.8/86.7 (base), 89.8/89.5 (large) accuracy, matched and mismatched. The matched part chooses the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.finetune.files import column, first_file, label_of, read_tsv, text_of
from unimo_ds.finetune.metrics.classification import accuracy
from unimo_ds.finetune.sentences import SentenceRow, SentenceTask
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig

_PARTS = ("matched", "mismatched")


class Mnli(SentenceTask):
    name, title, best_metric = "mnli", "MNLI", "accuracy_matched"
    labels = ("contradiction", "entailment", "neutral")

    def recipe(self, size: Size) -> Recipe:
        return Recipe(FinetuneConfig("mnli", size, epochs=10), learning_rate=2e-5, global_examples=32)

    def files(self, data: Path, split: str) -> list[Path]:
        if split == "train":
            return [first_file(data, ("train.tsv",))]
        return [first_file(data, (f"{split}_{part}.tsv",)) for part in _PARTS]

    def read(self, data: Path, split: str) -> Iterator[SentenceRow]:
        for path in self.files(data, split):
            for number, row in read_tsv(path):
                where = f"{path}:{number}"
                texts = tuple(text_of(column(row, name, path), where) for name in ("sentence1", "sentence2"))
                label = row.get("gold_label")
                target = float("nan") if label is None else label_of(label, self.labels, where)
                yield SentenceRow(where, texts, target)

    def part_of(self, key: str) -> str:
        return next((part for part in _PARTS if f"_{part}.tsv:" in key), "")

    def measure(self, scores_EK: NDArray[np.float32], targets_E: NDArray[np.float64]) -> dict[str, float]:
        return {"accuracy": accuracy(scores_EK.argmax(1), targets_E)}


TASK = Mnli()
