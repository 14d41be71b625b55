"""What the tasks share that write a text from a text: files of rows, sources and targets of the recipe's lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune.files import fingerprint_of, none_of, text_of
from unimo_ds.finetune.metrics.summaries import rouge
from unimo_ds.finetune.writing import Rows, TextRow, TextToText, WritingTask
from unimo_ds.utils.errors import UserError


class TextWritingTask(WritingTask):
    """A `WritingTask` whose examples are `TextRow`s of files."""

    examples_kind: type[TextToText] = TextToText

    def files(self, data: Path, split: str) -> tuple[Path, ...]:
        raise NotImplementedError

    def read(self, data: Path, split: str) -> Rows:
        raise NotImplementedError

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> TextToText:
        assert config.finetune is not None
        rows = self.read(data, split)
        paths = self.files(data, split)
        if not rows:
            raise UserError(f"{paths[0]} holds no example")
        return self.examples_kind(
            rows,
            tokenizer,
            max_source_tokens=config.data.max_text_tokens,
            max_target_tokens=config.finetune.max_target_tokens,
            fingerprint=fingerprint_of(paths),
        )


class SummaryTask(TextWritingTask):
    """A `TextWritingTask` with one reference a text, measured by ROUGE."""

    best_metric = "rouge_l"

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        return rouge(written, [one[0] for one in references]), {
            "rouge": "rouge-score with stemming; published: Perl ROUGE-1.5.5"
        }


def find_line_files(data: Path, pairs: Sequence[tuple[str, str]]) -> tuple[Path, Path]:
    """The first pair of source and target files that lies in `data`.

    Raises:
        UserError: none does.
    """
    for source, target in pairs:
        if (data / source).is_file() and (data / target).is_file():
            return data / source, data / target
    wanted = ", ".join(f"{source} with {target}" for source, target in pairs)
    raise none_of(data, wanted)


def row_of_lines(names: list[str], lines: list[str]) -> TextRow:
    """Source and target line, for `LineRows`.

    Raises:
        UserError: one is empty.
    """
    source, target = map(text_of, lines, names)
    return TextRow(names[0], (source,), (target,))
