"""MNLI, entailment between two sentences (GLUE): `train.tsv`, `dev_matched.tsv`, `dev_mismatched.tsv`; columns sentence1,
sentence2, gold_label.

Recipe of the release: 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5; used here: 32 and 2e-5. Published:
86.8/86.7 (base), 89.8/89.5 (large) accuracy, matched and mismatched. The matched part chooses the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from unimo_ds.finetune.files import first_file
from unimo_ds.finetune.sentences import SentenceTask
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig

_PARTS = ("matched", "mismatched")


class Mnli(SentenceTask):
    name, title, best_metric = "mnli", "MNLI", "accuracy_matched"
    columns, target_column = ("sentence1", "sentence2"), "gold_label"
    labels = ("contradiction", "entailment", "neutral")

    def recipe(self, size: Size) -> Recipe:
        return Recipe(FinetuneConfig("mnli", size, epochs=10), learning_rate=2e-5, global_examples=32)

    def files(self, data: Path, split: str) -> list[Path]:
        if split == "train":
            return super().files(data, split)
        return [first_file(data, (f"{split}_{part}.tsv",)) for part in _PARTS]

    def part_of(self, key: str) -> str:
        return next((part for part in _PARTS if f"_{part}.tsv:" in key), "")


TASK = Mnli()
