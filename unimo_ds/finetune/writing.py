"""Tasks that write: source (image regions, a text, or both), then [CLS] target END, trained as pre-training's generative
objective and searched for with `generation`.

The source sees itself whole; a target token sees the source and what stands before it. Positions begin anew at [CLS].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.examples import ImageInput
from unimo_ds.data.masking import Vocabulary
from unimo_ds.data.schema import CLS, FIRST_POSITION, NO_TAG, SEP, LanguageObjective, SequenceInput, SequenceRole
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch, TaskExample
from unimo_ds.finetune.joined_texts import join_texts
from unimo_ds.finetune.model import NoHead, TaskModel, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.reads import WRITING
from unimo_ds.finetune.task import Evaluation, Examples, Task
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.generation.generate import GenerationSettings, generate
from unimo_ds.utils.errors import UserError

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Source:
    """What is written from."""

    text: Tokens | None = None
    """With its specials."""
    image: ImageInput | None = None
    tags: NDArray[np.int32] | None = None
    """[G, tokens of `text`]"""

    @property
    def num_tokens(self) -> int:
        return 0 if self.text is None else len(self.text)

    def sequence(self, *, seed: int = 0, target: Tokens | None = None, end_id: int = SEP) -> SequenceInput:
        """The prompt, or with a target (without specials) the training example."""
        num_regions = 0 if self.image is None else len(self.image.features)
        prefix_length = num_regions + self.num_tokens
        parts = [] if self.text is None else [self.text]
        positions = [] if self.text is None else [np.arange(self.num_tokens, dtype=np.int32)]
        at, targets, tags = np.zeros(0, np.int32), np.zeros(0, np.int32), self.tags
        if target is not None:
            length = 1 + len(target)
            parts.append(np.concatenate(([CLS], target, [end_id])).astype(np.int32))
            positions.append(np.arange(length + 1, dtype=np.int32))
            at = np.arange(prefix_length, prefix_length + length, dtype=np.int32)
            targets = parts[-1][1:]
            if tags is not None:
                untagged = np.full((len(tags), length + 1), NO_TAG, np.int32)
                tags = np.concatenate((tags, untagged), axis=1)
        return SequenceInput(
            role=SequenceRole.JOINT_PAIR if self.image is not None else SequenceRole.SINGLE_TEXT,
            seed=seed,
            region_features=None if self.image is None else self.image.features,
            region_boxes=None if self.image is None else self.image.boxes,
            region_tags=None if self.image is None else self.image.tags,
            token_ids=np.concatenate(parts) if parts else None,
            token_positions=np.concatenate(positions) + np.int32(FIRST_POSITION) if parts else None,
            token_tags=tags,
            prefix_length=prefix_length,
            language_objective=LanguageObjective.SEQUENCE_TO_SEQUENCE,
            language_at=at,
            language_targets=targets,
        )


class WritingExamples(Examples, Protocol):
    """`task.Examples` that can also be written from."""

    @property
    def num_prompts(self) -> int:
        """Texts to write; images with several captions are one each."""
        ...

    def prompt_key(self, number: int) -> str: ...

    def prompt_length(self, number: int) -> int: ...

    def prompt(self, number: int) -> Source: ...

    def references(self, number: int) -> list[str]:
        """Texts that people wrote; empty where the file has none."""
        ...

    def official(self, number: int, text: str) -> dict[str, Any] | None:
        """The entry with this text in the task's own file of answers; None: it has no such file."""
        ...


@dataclass(frozen=True)
class TextRow:
    """One line of a task on texts."""

    key: str
    sources: tuple[str, ...]
    """Joined by [SEP]; the longest loses its end where they are too long together."""
    references: tuple[str, ...]
    """The first is what training writes; none in test files without."""
    official: Mapping[str, Any] | None = None
    """What names it in the task's own files of answers, where there are such."""


class Rows(Protocol):
    """A list of them, or `line_rows.LineRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TextRow: ...


class TextToText:
    """`WritingExamples` of rows, tokenised when they are visited."""

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
        """max_source_tokens: with both specials. max_target_tokens: with the end token."""
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
        sequence = self.prompt(index).sequence(seed=seed, target=target, end_id=self._tokenizer.mask_id)
        return TaskExample(row.key, (sequence,))

    def prompt(self, number: int) -> Source:
        texts = [self._tokenizer.encode(text) for text in self.rows[number].sources]
        return Source(text=join_texts(texts, max_text_tokens=self._max_source))

    def prompt_length(self, number: int) -> int:
        return self.prompt(number).num_tokens

    def references(self, number: int) -> list[str]:
        return list(self.rows[number].references)

    def official(self, number: int, text: str) -> dict[str, Any] | None:
        names = self.rows[number].official
        return None if names is None else {**names, "answer": text}


class WritingTask(Task):
    """What all tasks that write share; a task's file says how its lines are read and what is measured."""

    reads: tuple[str, ...] = WRITING
    ends_with_mask = True
    """Texts end with [MASK] in the text tasks, with [SEP] in captioning."""

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics and notes of texts, each with what people wrote. quick: as in `evaluate`."""
        raise NotImplementedError

    def generation_settings(self, config: RunConfig, tokenizer: Tokenizer) -> GenerationSettings:
        """How a model fine-tuned with `config` searches for its texts."""
        assert config.finetune is not None
        generation = config.finetune.generation
        return GenerationSettings(
            num_beams=generation.beams,
            length_penalty=generation.length_penalty,
            min_tokens=generation.min_tokens,
            max_tokens=generation.max_tokens,
            no_repeat_words=3 if generation.block_trigrams else 0,
            end_id=tokenizer.mask_id if self.ends_with_mask else SEP,
        )

    def make_head(self, config: RunConfig) -> nn.Module:
        return NoHead()

    def count(self, batch: TaskBatch) -> int:
        return len(batch.language_at)

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """Cross-entropy of every target token, smoothed as the recipe says."""
        return output.language_losses.sum()

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        """Search for a text for every prompt and compare it with what people wrote."""
        found = cast(WritingExamples, examples)
        settings = self.generation_settings(config, tokenizer)
        micro_batch_tokens = config.batch.micro_batch_tokens // settings.num_beams
        written = write(engine, found, tokenizer, settings, micro_batch_tokens=micro_batch_tokens)
        predictions = [
            {"key": found.prompt_key(number), "answer": text, "official": found.official(number, text)}
            for number, text in enumerate(written)
        ]
        references = [found.references(number) for number in range(found.num_prompts)]
        if not all(references):
            return Evaluation({}, predictions, {"metrics": "the file has no references, so nothing was measured"})
        # The packages measure in processes of their own: once, on the first rank.
        is_first = engine.communicator.rank == 0
        metrics, notes = engine.communicator.broadcast_object(
            self.measure(written, references, quick=quick) if is_first else None
        )
        return Evaluation(metrics, predictions, notes)


def write(
    engine: TaskEngine,
    examples: WritingExamples,
    tokenizer: Tokenizer,
    settings: GenerationSettings,
    *,
    micro_batch_tokens: int,
) -> list[str]:
    """The best text for every prompt, on every rank. A collective; not for ZeRO-3, whose ranks would have to write equally many
    tokens.
    """
    model = engine.module
    assert isinstance(model, TaskModel)
    vocabulary = Vocabulary.of(tokenizer)

    def run(items: NDArray[np.int64]) -> list[str]:
        prompts = [examples.prompt(item).sequence() for item in items.tolist()]
        found = generate(model, prompts, vocabulary, settings) if prompts else []
        return [tokenizer.decode(texts[0].tokens).strip() for texts in found]

    lengths = np.array([examples.prompt_length(number) for number in range(examples.num_prompts)], np.int64)
    parts = predict.over_ranks(engine.communicator, lengths, run, micro_batch_tokens=micro_batch_tokens)
    return [text for part in parts for text in part]
