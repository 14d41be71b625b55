"""CoLA, acceptability of sentences (GLUE): `train.tsv`, `dev.tsv` with source, label, mark, sentence and no header; `test.tsv`
with index and sentence and a header.

Recipe of the release: 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5; used here: 16 and 2e-5. Published:
Matthews 65.4 (base), 68.5 (large).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unimo_ds.finetune.metrics.classification import matthews
from unimo_ds.finetune.sentences import SentenceTask
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig


class Cola(SentenceTask):
    name, title, best_metric = "cola", "CoLA", "matthews"
    labels = ("0", "1")

    def recipe(self, size: Size) -> Recipe:
        return Recipe(FinetuneConfig("cola", size, epochs=10), learning_rate=2e-5, global_examples=16)

    def header(self, split: str) -> tuple[str, ...] | None:
        return None if split == "test" else ("source", "label", "mark", "sentence")

    def measure(self, scores_EK: NDArray[np.float32], targets_E: NDArray[np.float64]) -> dict[str, float]:
        return {"matthews": matthews(scores_EK.argmax(1), targets_E)}


TASK = Cola()
