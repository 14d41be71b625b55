"""Tasks that answer about a jointly encoded image and text: image regions, then [CLS] text [SEP].

Examples, up to half a million, are held as columns: tokens, image numbers, targets.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.inputs import clean_sequence, text_input
from unimo_ds.data.sample_shelf import SampleShelf
from unimo_ds.data.schema import SequenceRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune.batch import TaskExample
from unimo_ds.finetune.columns import Names, Ragged
from unimo_ds.finetune.files import fingerprint_of
from unimo_ds.finetune.images import ImageNames, check_images
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

IMAGES_FOLDER = "images"
_ENCODED_AT_ONCE = 10_000


@dataclass(frozen=True)
class AnsweredRow:
    """What a metric needs of one question, or statement, about an image."""

    key: str
    targets: tuple[tuple[int, float], ...]
    """(index in the target vector, value); all others are 0."""
    people: tuple[str, ...] = ()
    """VQA: the annotators' answers."""
    question: int = 0
    """VQA: number of the question."""


@dataclass(frozen=True)
class ImageTextRow:
    """One question, or statement, about an image, as read."""

    answered: AnsweredRow
    image: int
    """Number of the sample with this image."""
    text: str


@dataclass(frozen=True)
class Columns:
    """Rows, each column in one piece; texts are tokenised as they are read."""

    keys: Names
    images: array[int]
    texts: Ragged
    """Tokens as the encoder takes them."""
    places: Ragged
    values: Ragged
    """Of the targets other than 0."""
    people: Ragged
    """Indices in `answers`."""
    questions: array[int]
    answers: list[str]

    @classmethod
    def of(cls, rows: Iterable[ImageTextRow], tokenizer: Tokenizer, *, max_text_tokens: int) -> Columns:
        number_of: dict[str, int] = {}
        found = cls(Names(), array("q"), Ragged("i"), Ragged("i"), Ragged("d"), Ragged("i"), array("q"), [])
        for some in batched(rows, _ENCODED_AT_ONCE):
            for row, tokens in zip(some, tokenizer.encode_batch([row.text for row in some]), strict=True):
                answered = row.answered
                found.keys.append(answered.key)
                found.images.append(row.image)
                found.texts.append(text_input(tokens, max_text_tokens=max_text_tokens))
                found.places.append([place for place, _ in answered.targets])
                found.values.append([value for _, value in answered.targets])
                found.people.append([number_of.setdefault(answer, len(number_of)) for answer in answered.people])
                found.questions.append(answered.question)
        found.answers.extend(number_of)
        return found

    def row(self, index: int) -> AnsweredRow:
        return AnsweredRow(
            self.keys[index],
            tuple(zip(self.places[index].tolist(), self.values[index].tolist(), strict=True)),
            tuple(self.answers[number] for number in self.people[index].tolist()),
            self.questions[index],
        )

    def select(self, indices: Sequence[int]) -> Columns:
        ragged = (one.select(indices) for one in (self.texts, self.places, self.values, self.people))
        images, questions = (array("q", (one[index] for index in indices)) for one in (self.images, self.questions))
        texts, places, values, people = ragged
        return Columns(self.keys.select(indices), images, texts, places, values, people, questions, self.answers)


@dataclass(frozen=True)
class ImageTextExamples:
    """`task.Examples` of rows."""

    columns: Columns
    shelf: SampleShelf
    target_size: int
    fingerprint: str
    answers: Sequence[str] = ()
    """Names of the targets, if they are answers."""

    @property
    def feature_size(self) -> int:
        return self.shelf.corpus.feature_size

    @classmethod
    def open(
        cls,
        read: Callable[[ImageNames], Iterable[ImageTextRow]],
        paths: Sequence[Path],
        data: Path,
        split: str,
        *,
        tokenizer: Tokenizer,
        config: RunConfig,
        target_size: int,
        answers: Sequence[str] = (),
    ) -> ImageTextExamples:
        """What `read` finds in the files at `paths`, with the images of the split below `data`.

        Raises:
            UserError: no images, unreadable files, and what `read` raises.
        """
        corpus = check_images(find_images(data, split), config, tokenizer=None)
        rows = read(ImageNames(corpus))
        return cls(
            Columns.of(rows, tokenizer, max_text_tokens=config.data.max_text_tokens),
            SampleShelf(corpus, max_regions=config.data.max_regions),
            target_size=target_size,
            fingerprint=f"{fingerprint_of(paths)}/{corpus.fingerprint}",
            answers=answers,
        )

    def __len__(self) -> int:
        return len(self.columns.keys)

    @property
    def rows(self) -> Iterator[AnsweredRow]:
        """One by one."""
        return map(self.columns.row, range(len(self)))

    @property
    def targets_E(self) -> NDArray[np.float64]:
        """As in `LabelledExamples`, of examples with one target."""
        return np.array([row.targets[0][1] if row.targets else np.nan for row in self.rows])

    def key(self, index: int) -> str:
        return self.columns.keys[index]

    def select(self, indices: Sequence[int]) -> ImageTextExamples:
        fingerprint = f"{self.fingerprint}/{len(indices)}"
        return dataclasses.replace(self, columns=self.columns.select(indices), fingerprint=fingerprint)

    def lengths(self, index: int, seed: int) -> list[int]:
        return [self.shelf.length(self.columns.images[index]) + self.columns.texts.length(index)]

    def make(self, index: int, seed: int) -> TaskExample:
        columns = self.columns
        image = self.shelf.image(columns.images[index])
        sequence = clean_sequence(role=SequenceRole.JOINT_PAIR, seed=seed, image=image, text=columns.texts[index])
        targets = np.zeros(self.target_size, np.float32)
        targets[columns.places[index]] = columns.values[index]
        return TaskExample(columns.keys[index], (sequence,), targets)


def find_images(data: Path, split: str) -> Corpus:
    """The data folder of a task's images, not yet checked against the model: `data/images/SPLIT`, or `data/images` for all splits
    together.

    Raises:
        UserError: none there.
    """
    folders = (data / IMAGES_FOLDER / split, data / IMAGES_FOLDER)
    folder = next((one for one in folders if (one / "manifest.json").is_file()), None)
    if folder is None:
        raise UserError(f"there is no data folder at {folders[1]}; make it with `unimo prepare import --kind images`")
    return Corpus.open(folder)
