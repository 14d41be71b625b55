"""STS-B, similarity of two sentences from 0 to 5 (GLUE): columns sentence1, sentence2, score.

Recipe of the release: squared error on one output, started from the model fine-tuned on MNLI (`--checkpoint` of that
run); 10 epochs, batches of {16, 32}, rates of {1, 2, 3}e-5; used here: 16 and 2e-5. Published, the mean of Pearson
and Spearman: 91.0 (base), 92.6 (large).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unimo_ds.finetune.metrics.classification import correlations
from unimo_ds.finetune.sentences import SentenceTask
from unimo_ds.finetune.task import Recipe, Size
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.utils.errors import UserError


class Stsb(SentenceTask):
    name, title, best_metric = "stsb", "STS-B", "mean_correlation"
    columns, target_column = ("sentence1", "sentence2"), "score"

    def recipe(self, size: Size) -> Recipe:
        finetune = FinetuneConfig("stsb", size, epochs=10, num_outputs=1)
        return Recipe(finetune, learning_rate=2e-5, global_examples=16)

    def target(self, text: str, where: str) -> float:
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if not 0 <= score <= 5:
            raise UserError(f"{where} has the score {text!r}, not a number from 0 to 5")
        return score

    def measure(self, scores_EK: NDArray[np.float32], targets_E: NDArray[np.float64]) -> dict[str, float]:
        pearson, spearman = correlations(scores_EK[:, 0], targets_E)
        return {"mean_correlation": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


TASK = Stsb()
