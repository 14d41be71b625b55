"""What a downstream task is. A new task is a new file in `tasks/` with one object of this kind, usually based on
`sentences.SentenceTask`, `labels.LabelTask` or `writing.WritingTask` (docs/extending.md).

Letters: E examples, K numbers per target, S sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation.pairs import evenly
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.model import TaskOutput
from unimo_ds.finetune.predict import Scorable, TaskEngine
from unimo_ds.finetune.reads import OF_SOME_TASKS
from unimo_ds.finetune_config import FinetuneConfig

Size = Literal["base", "large"]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters for one model size that differ between tasks; each task's docstring names their source."""

    finetune: FinetuneConfig
    learning_rate: float
    global_examples: int
    weight_decay: float = 0.0
    beta2: float = 0.98
    max_text_tokens: int = 512
    max_regions: int = 100
    schedule: Literal["linear_from_start", "drops"] = "linear_from_start"


class Examples(Scorable, Protocol):
    """The examples of one split."""

    @property
    def fingerprint(self) -> str:
        """Hash of the files' content."""
        ...

    def key(self, index: int) -> str: ...

    def select(self, indices: Sequence[int]) -> Examples:
        """Only these examples; for captions, their images with all captions."""
        ...


def spread(examples: Examples, number: int) -> Examples:
    """`number` of the examples, evenly spread, plus what `select` returns with them; all if it is 0 or there are no more."""
    return examples.select(evenly(len(examples), number).tolist()) if 0 < number < len(examples) else examples


class Task(ABC):
    """One downstream task. All methods are pure, except that they read files."""

    name: str
    """Name on the command line."""
    title: str
    """Name in tables."""
    best_metric: str
    """The metric (higher is better) that chooses the best checkpoint."""
    official_form: str = ""
    """Suffix of the answer file that the task's official evaluation takes (`answers.py`); empty: it takes none."""
    tag_sizes: tuple[int, ...] = ()
    """Rows of each tag table of text tokens."""
    reads: tuple[str, ...] = tuple(OF_SOME_TASKS)
    """The settings it uses of those that only some tasks use; `--set` refuses the others."""

    @abstractmethod
    def recipe(self, size: Size) -> Recipe: ...

    def settle(self, config: RunConfig, data: Path) -> tuple[RunConfig, Mapping[str, Any]]:
        """`config` plus what the training data determines (number of outputs), and assets to store with the run (answers)."""
        return config, {}

    def find_images(self, data: Path, split: str) -> Corpus | None:
        """The data folder of a split's images; None if the task has no images.

        Raises:
            UserError: none there.
        """
        return None

    @abstractmethod
    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> Examples:
        """The examples of a split: `train`, `dev` or `test`.

        Raises:
            UserError: a missing file or image, an unknown label, an empty text; names the file and line.
        """

    def prepare_training(self, examples: Examples, engine: TaskEngine, config: RunConfig) -> Examples:
        """Examples for training (with hard negatives), and a head initialised from what the body knows. A collective.

        engine: has the starting weights; its head may be changed in place.
        """
        return examples

    @abstractmethod
    def make_head(self, config: RunConfig) -> nn.Module: ...

    def count(self, batch: TaskBatch) -> int:
        """Number of terms of the loss."""
        return len(batch.targets)

    def unanswered(self, examples: Examples) -> str | None:
        """Key of an example without a right answer, as in test sets; None if all have one."""
        return None

    @abstractmethod
    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """fp32 scalar."""

    @abstractmethod
    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        """Measure on all examples. Every rank calls it and gets the same result.

        quick: only what training needs to choose a checkpoint; slow metrics beyond that (METEOR) may be left out.
        """


@dataclass(frozen=True)
class Evaluation:
    """Result of a measurement."""

    metrics: dict[str, float]
    """Names as in the paper's tables, values as fractions in [0, 1] (BLEU, ROUGE, METEOR and CIDEr likewise)."""
    predictions: list[dict[str, Any]]
    """One per example, in order; on every rank: its `key`, the model's answer, and the entry of the answer file that the task's
    official evaluation takes, if there is one (`official`, see `answers.py`)."""
    notes: dict[str, str]
    """What a reader of the metrics must know: how texts were tokenised, and what could not be measured and why."""
