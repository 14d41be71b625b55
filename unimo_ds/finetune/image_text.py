"""Tasks that answer about an image and a text, encoded jointly: image regions, then [CLS] text [SEP]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.examples import clean_sequence
from unimo_ds.data.schema import SequenceRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune.batch import TaskBatch, TaskExample
from unimo_ds.finetune.images import ImageNames, SampleShelf, check_images
from unimo_ds.finetune.predict import Untrained
from unimo_ds.finetune.sentences import join_texts
from unimo_ds.finetune.task import Examples
from unimo_ds.utils.errors import UserError

IMAGES_FOLDER = "images"


@dataclass(frozen=True)
class ImageTextRow:
    """One question, or statement, about an image."""

    key: str
    image: int
    """Number of the sample that shows it."""
    text: str
    targets: tuple[tuple[int, float], ...]
    """(place among the targets, value); the others are 0."""
    people: tuple[str, ...] = ()
    """VQA: the answers of people."""
    question: int = 0
    """VQA: number of the question."""


class ImageTextExamples:
    """`task.Examples` of rows."""

    def __init__(
        self,
        rows: Sequence[ImageTextRow],
        shelf: SampleShelf,
        tokenizer: Tokenizer,
        *,
        max_text_tokens: int,
        target_size: int,
        fingerprint: str,
        answers: Sequence[str] = (),
    ) -> None:
        """answers: names of the targets, where they are answers."""
        self.answers = answers
        self.rows, self.shelf, self.fingerprint, self.target_size = rows, shelf, fingerprint, target_size
        self.feature_size = shelf.corpus.feature_size
        self._tokenizer, self._max_text_tokens = tokenizer, max_text_tokens

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index].key

    def select(self, indices: Sequence[int]) -> ImageTextExamples:
        rows = [self.rows[index] for index in indices]
        return ImageTextExamples(
            rows,
            self.shelf,
            self._tokenizer,
            max_text_tokens=self._max_text_tokens,
            target_size=self.target_size,
            fingerprint=f"{self.fingerprint}/{len(rows)}",
            answers=self.answers,
        )

    def lengths(self, index: int, seed: int) -> list[int]:
        return [self.shelf.length(self.rows[index].image) + len(self._text(index))]

    def make(self, index: int, seed: int) -> TaskExample:
        row = self.rows[index]
        sequence = clean_sequence(
            role=SequenceRole.JOINT_PAIR, seed=seed, image=self.shelf.image(row.image), text=self._text(index)
        )
        targets = np.zeros(self.target_size, np.float32)
        for place, value in row.targets:
            targets[place] = value
        return TaskExample(row.key, (sequence,), targets)

    def _text(self, index: int) -> NDArray[np.int32]:
        return join_texts([self._tokenizer.encode(self.rows[index].text)], max_text_tokens=self._max_text_tokens)


class ImageTextTask:
    """What these tasks share."""

    tag_sizes: tuple[int, ...] = ()

    def prepare_training(self, examples: Examples, engine: Untrained, config: RunConfig) -> Examples:
        return examples

    def count(self, batch: TaskBatch) -> int:
        return len(batch.targets)


def open_images(data: Path, split: str, config: RunConfig) -> tuple[SampleShelf, ImageNames]:
    """The images of a task: `data/images/SPLIT` or, for all splits together, `data/images`.

    Raises:
        UserError: no data folder there, or one made with another region extractor.
    """
    folders = (data / IMAGES_FOLDER / split, data / IMAGES_FOLDER)
    folder = next((one for one in folders if (one / "manifest.json").is_file()), None)
    if folder is None:
        raise UserError(f"there is no data folder at {folders[1]}; make it with `unimo prepare import --kind images`")
    corpus = check_images(Corpus.open(folder), config, tokenizer=None)
    return SampleShelf(corpus, max_regions=config.data.max_regions), ImageNames(corpus)
