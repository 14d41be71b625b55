"""Tasks on one or two sentences: [CLS] A [SEP], or [CLS] A [SEP] B [SEP], tokenised once; only their tokens are held."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.inputs import clean_sequence
from unimo_ds.data.joined_texts import join_texts
from unimo_ds.data.schema import SequenceRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune.batch import TaskExample
from unimo_ds.finetune.columns import Names, Ragged
from unimo_ds.finetune.files import column, fingerprint_of, first_file, label_of, read_tsv, text_of
from unimo_ds.finetune.labels import LabelTask
from unimo_ds.finetune.model import TextHead
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

_ENCODED_AT_ONCE = 10_000


@dataclass(frozen=True)
class SentenceRow:
    """One line of a task's file, as read."""

    key: str
    """`FILE:LINE`"""
    texts: tuple[str, ...]
    """One or two."""
    target: float
    """Index of the label, or the value; nan if the file has none (test sets)."""


class SentenceExamples:
    """`LabelledExamples` of rows."""

    feature_size = 1
    target_size = 1

    def __init__(self, keys: Names, targets_E: NDArray[np.float64], inputs: Ragged, *, fingerprint: str) -> None:
        """targets_E: [E]. inputs: every example's tokens as the encoder takes them."""
        self.keys, self.targets_E, self.fingerprint = keys, targets_E, fingerprint
        self._inputs = inputs

    @classmethod
    def of(
        cls, rows: Iterable[SentenceRow], tokenizer: Tokenizer, *, max_text_tokens: int, fingerprint: str
    ) -> SentenceExamples:
        """Tokenises the rows as they are read."""
        keys, targets, inputs = Names(), array("d"), Ragged("i")
        for some in batched(rows, _ENCODED_AT_ONCE):
            encoded = iter(tokenizer.encode_batch([text for row in some for text in row.texts]))
            for row in some:
                keys.append(row.key)
                targets.append(row.target)
                inputs.append(join_texts([next(encoded) for _ in row.texts], max_text_tokens=max_text_tokens))
        return cls(keys, np.array(targets), inputs, fingerprint=fingerprint)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def lengths(self, index: int, seed: int) -> list[int]:
        return [self._inputs.length(index)]

    def make(self, index: int, seed: int) -> TaskExample:
        sequence = clean_sequence(role=SequenceRole.SINGLE_TEXT, seed=seed, text=self._inputs[index])
        return TaskExample(self.keys[index], (sequence,), self.targets_E[index : index + 1].astype(np.float32))

    def select(self, indices: Sequence[int]) -> SentenceExamples:
        return SentenceExamples(
            self.keys.select(indices),
            self.targets_E[np.asarray(indices, np.int64)],
            self._inputs.select(indices),
            fingerprint=f"{self.fingerprint}/{len(indices)}",
        )


class SentenceTask(LabelTask):
    """The shared part of tasks on sentences. By default, the files are `SPLIT.tsv`."""

    official_form = ".tsv"
    columns: tuple[str, ...] = ("sentence",)
    """Those with the one or two sentences."""
    target_column = "label"
    """May be missing in test sets."""

    def files(self, data: Path, split: str) -> list[Path]:
        return [first_file(data, (f"{split}.tsv",))]

    def header(self, split: str) -> Sequence[str] | None:
        """Names of all columns, if the files do not start with them."""
        return None

    def target(self, text: str, where: str) -> float:
        """The value in the target's column. Raises UserError: not a valid one."""
        return label_of(text, self.labels, where)

    def read(self, data: Path, split: str) -> Iterator[SentenceRow]:
        """Line by line, so that no file is held in memory."""
        for path in self.files(data, split):
            for number, row in read_tsv(path, header=self.header(split)):
                where = f"{path}:{number}"
                texts = tuple(text_of(column(row, name, path), where) for name in self.columns)
                target = row.get(self.target_column)
                yield SentenceRow(where, texts, float("nan") if target is None else self.target(target, where))

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> SentenceExamples:
        paths = self.files(data, split)
        found = SentenceExamples.of(
            self.read(data, split),
            tokenizer,
            max_text_tokens=config.data.max_text_tokens,
            fingerprint=fingerprint_of(paths),
        )
        if not len(found):
            raise UserError(f"{paths[0]} holds no example")
        return found

    def make_head(self, config: RunConfig) -> nn.Module:
        return TextHead(config, num_outputs=max(1, len(self.labels)))
