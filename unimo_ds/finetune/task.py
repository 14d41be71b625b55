"""What a downstream task is. A new task is a new file in `tasks/` with one object of this form, which mostly begins from
`sentences.SentenceTask`, `image_text_labels.ImageTextLabelTask` or `writing.WritingTask` (docs/extending.md).

Letters: E examples, K numbers a target, S sequences.
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
from unimo_ds.finetune.predict import Scorable, TaskEngine, Untrained
from unimo_ds.finetune.reads import OF_SOME_TASKS
from unimo_ds.finetune_config import FinetuneConfig

Size = Literal["base", "large"]


@dataclass(frozen=True)
class Recipe:
    """The numbers of one size that differ from task to task; see the docstring of each task for their source."""

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
        """Of the files' content."""
        ...

    def key(self, index: int) -> str: ...

    def select(self, indices: Sequence[int]) -> Examples:
        """These examples alone; of captions, their images with all captions."""
        ...


def spread(examples: Examples, number: int) -> Examples:
    """`number` of the examples, evenly apart, and what `select` gives with them; all where it is 0 or there are no more."""
    return examples.select(evenly(len(examples), number).tolist()) if 0 < number < len(examples) else examples


class Task(ABC):
    """One downstream task. All methods are pure, but for reading files."""

    name: str
    """On the command line."""
    title: str
    """In tables."""
    best_metric: str
    """Which metric, higher being better, chooses the best checkpoint."""
    official_form: str = ""
    """Ending of the file of answers that the task's own evaluation takes (`answers.py`); empty: it takes none."""
    tag_sizes: tuple[int, ...] = ()
    """Rows of each table of tags of text tokens."""
    reads: tuple[str, ...] = tuple(OF_SOME_TASKS)
    """Which settings it reads of those that not all tasks do; `--set` refuses the others."""

    @abstractmethod
    def recipe(self, size: Size) -> Recipe: ...

    def settle(self, config: RunConfig, data: Path) -> tuple[RunConfig, Mapping[str, Any]]:
        """`config` with what the training data decides (number of outputs), and assets to keep beside the run (answers)."""
        return config, {}

    def find_images(self, data: Path, split: str) -> Corpus | None:
        """The data folder of a split's images; None of a task without any.

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

    def prepare_training(self, examples: Examples, engine: Untrained, config: RunConfig) -> Examples:
        """Examples as training visits them (hard negatives), and a head that begins with what the body knows. A collective.

        engine: the model with its starting weights, whose head may be changed in place.
        """
        return examples

    @abstractmethod
    def make_head(self, config: RunConfig) -> nn.Module: ...

    def count(self, batch: TaskBatch) -> int:
        """What the loss sums over."""
        return len(batch.targets)

    def unanswered(self, examples: Examples) -> str | None:
        """Key of an example that does not say what is right, as in test sets; None: all do."""
        return None

    @abstractmethod
    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """fp32 scalar."""

    @abstractmethod
    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        """Measure on all examples. Every rank calls it alike and gets the same result.

        quick: what training needs to choose a checkpoint; slow measures beside it (METEOR) may be left out.
        """


@dataclass(frozen=True)
class Evaluation:
    """What a measurement found."""

    metrics: dict[str, float]
    """Names as in the paper's tables, values as shares in [0, 1] (BLEU, ROUGE, METEOR and CIDEr likewise)."""
    predictions: list[dict[str, Any]]
    """One for each example, in order; on every rank: its `key`, what the model said, and, where the task's own evaluation takes
    files of answers, the entry of such a file (`official`, see `answers.py`)."""
    notes: dict[str, str]
    """What a reader of the metrics must know: how texts were tokenised, what could not be measured and why."""
