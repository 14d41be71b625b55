"""The shared part of tasks that write a text from a text: files of rows, with sources and targets of the recipe's lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unimo_ds.config import RunConfig
from unimo_ds.data.inputs import clean_sequence
from unimo_ds.data.joined_texts import join_texts
from unimo_ds.data.schema import SequenceInput, SequenceRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune.batch import TaskExample
from unimo_ds.finetune.files import fingerprint_of, first_files, text_of
from unimo_ds.finetune.metrics.summaries import rouge
from unimo_ds.finetune.writing import WritingTask, with_target
from unimo_ds.utils.errors import UserError


@dataclass(frozen=True)
class TextRow:
    """One line of a text-to-text task."""

    key: str
    sources: tuple[str, ...]
    """Joined by [SEP]; if they are too long together, the longest is cut at its end."""
    references: tuple[str, ...]
    """Training writes the first one; empty in test files without references."""
    official: Mapping[str, Any] | None = None
    """Identifies it in the task's official answer files, if the task has such files."""


class Rows(Protocol):
    """A list of `TextRow`s, or `line_rows.LineRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TextRow: ...


class TextToText:
    """`WritingExamples` of rows, tokenised at each visit."""

    feature_size = 1
    target_size = 0

    def __init__(
        self,
        rows: Rows,
        tokenizer: Tokenizer,
        *,
        max_source_tokens: int,
        max_target_tokens: int,
        fingerprint: str,
    ) -> None:
        """max_source_tokens: including both special tokens. max_target_tokens: including the end token."""
        self.rows, self.fingerprint = rows, fingerprint
        self._tokenizer, self._max_source, self._max_target = tokenizer, max_source_tokens, max_target_tokens

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_prompts(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index].key

    prompt_key = key

    def select(self, indices: Sequence[int]) -> TextToText:
        rows = [self.rows[index] for index in indices]
        return type(self)(
            rows,
            self._tokenizer,
            max_source_tokens=self._max_source,
            max_target_tokens=self._max_target,
            fingerprint=f"{self.fingerprint}/{len(rows)}",
        )

    def lengths(self, index: int, seed: int) -> list[int]:
        return [self.make(index, seed).sequences[0].length]

    def make(self, index: int, seed: int) -> TaskExample:
        row = self.rows[index]
        if not row.references:
            raise UserError(f"{row.key} has no text to learn to write")
        target = self._tokenizer.encode(row.references[0])[: self._max_target - 1]
        prompt = self.prompt(index, seed=seed)
        return TaskExample(row.key, (with_target(prompt, target, end_id=self._tokenizer.mask_id),))

    def prompt(self, number: int, *, seed: int = 0) -> SequenceInput:
        texts = [self._tokenizer.encode(text) for text in self.rows[number].sources]
        text = join_texts(texts, max_text_tokens=self._max_source)
        return clean_sequence(role=SequenceRole.SINGLE_TEXT, seed=seed, text=text)

    def prompt_length(self, number: int) -> int:
        return self.prompt(number).length

    def references(self, number: int) -> list[str]:
        return list(self.rows[number].references)

    def official(self, number: int, text: str) -> dict[str, Any] | None:
        names = self.rows[number].official
        return None if names is None else {**names, "answer": text}


class TextWritingTask(WritingTask):
    """A `WritingTask` whose examples are `TextRow`s of files."""

    examples_kind: type[TextToText] = TextToText

    def names(self, split: str) -> Iterable[tuple[str, ...]]:
        """Names of a split's files, or of the two files whose lines correspond; the first choice that is there is read."""
        raise NotImplementedError

    def rows(self, paths: tuple[Path, ...]) -> Rows:
        """What one choice of `names` holds."""
        raise NotImplementedError

    def read(self, data: Path, split: str) -> Rows:
        return self.rows(first_files(data, self.names(split)))

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> TextToText:
        paths = first_files(data, self.names(split))
        rows = self.rows(paths)
        if not rows:
            raise UserError(f"{paths[0]} holds no example")
        return self.examples_kind(
            rows,
            tokenizer,
            max_source_tokens=config.data.max_text_tokens,
            max_target_tokens=config.finetuning.max_target_tokens,
            fingerprint=fingerprint_of(paths),
        )


class SummaryTask(TextWritingTask):
    """A `TextWritingTask` with one reference per text, measured by ROUGE."""

    best_metric = "rouge_l"

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        return rouge(written, [one[0] for one in references]), {
            "rouge": "rouge-score with stemming; published: Perl ROUGE-1.5.5"
        }


def row_of_lines(names: list[str], lines: list[str]) -> TextRow:
    """Source and target line, for `LineRows`.

    Raises:
        UserError: one is empty.
    """
    source, target = map(text_of, lines, names)
    return TextRow(names[0], (source,), (target,))
