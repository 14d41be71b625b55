"""SST-2, sentiment of film reviews (GLUE): `train.tsv`, `dev.tsv`, `test.tsv` with the columns sentence and label.

Recipe of the release: 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5, seeds 1 to 5, best development value
of each; used here: 32 and 2e-5. Published: 95.1 (base), 96.8 (large) accuracy.
"""

from __future__ import annotations

from pathlib import Path

from unimo_ds.finetune.files import first_file
from unimo_ds.finetune.sentences import SentenceTask
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig


class Sst2(SentenceTask):
    name, title = "sst2", "SST-2"
    labels = ("0", "1")

    def recipe(self, size: Size) -> Recipe:
        return Recipe(FinetuneConfig("sst2", size, epochs=10), learning_rate=2e-5, global_examples=32)

    def files(self, data: Path, split: str) -> list[Path]:
        return [first_file(data, (f"{split}.tsv", f"sst2_{split}.tsv"))]


TASK = Sst2()
