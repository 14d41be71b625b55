"""CoLA, acceptability of sentences (GLUE): `train.tsv`, `dev.tsv` of source, label, mark, sentence without a header; `test.tsv`
of index and sentence with one.

Recipe of the release: 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5; taken here: 16 and 2e-5. Published:
Matthews 65.4 (base), 68.5 (large).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.finetune.files import first_file
from unimo_ds.finetune.metrics.classification import matthews
from unimo_ds.finetune.sentences import SentenceRow, SentenceTask, read_labelled
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig

_COLUMNS = ("source", "label", "mark", "sentence")


class Cola(SentenceTask):
    name, title, best_metric = "cola", "CoLA", "matthews"
    labels = ("0", "1")

    def recipe(self, size: Size) -> Recipe:
        return Recipe(FinetuneConfig("cola", size, epochs=10), learning_rate=2e-5, global_examples=16)

    def files(self, data: Path, split: str) -> list[Path]:
        return [first_file(data, (f"{split}.tsv",))]

    def read(self, data: Path, split: str) -> Iterator[SentenceRow]:
        return read_labelled(self.files(data, split)[0], self.labels, header=None if split == "test" else _COLUMNS)

    def measure(self, scores_EK: NDArray[np.float32], targets_E: NDArray[np.float64]) -> dict[str, float]:
        return {"matthews": matthews(scores_EK.argmax(1), targets_E)}


TASK = Cola()
