"""SST-2, sentiment of film reviews (GLUE): `train.tsv`, `dev.tsv`, `test.tsv` with the columns sentence and label.

Recipe of the release: 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5, seeds 1 to 5, best development value
of each; taken here: 32 and 2e-5. Published: 95.1 (base), 96.8 (large) accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.finetune.files import first_file
from unimo_ds.finetune.metrics.classification import accuracy
from unimo_ds.finetune.sentences import SentenceRow, SentenceTask, read_labelled
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig


class Sst2(SentenceTask):
    name, title, best_metric = "sst2", "SST-2", "accuracy"
    labels = ("0", "1")

    def recipe(self, size: Size) -> Recipe:
        return Recipe(FinetuneConfig("sst2", size, epochs=10), learning_rate=2e-5, global_examples=32)

    def files(self, data: Path, split: str) -> list[Path]:
        return [first_file(data, (f"{split}.tsv", f"sst2_{split}.tsv"))]

    def read(self, data: Path, split: str) -> Iterator[SentenceRow]:
        return read_labelled(self.files(data, split)[0], self.labels)

    def measure(self, scores_EK: NDArray[np.float32], targets_E: NDArray[np.float64]) -> dict[str, float]:
        return {"accuracy": accuracy(scores_EK.argmax(1), targets_E)}


TASK = Sst2()
