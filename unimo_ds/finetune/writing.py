"""Tasks that write text: source (image regions, a text, or both), then [CLS] target END; trained like pre-training's
generative objective, decoded with `generation`.

The source attends to all of itself; a target token to the source and the target before it. Positions restart at [CLS].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.masking import Tokens, Vocabulary
from unimo_ds.data.schema import CLS, FIRST_POSITION, NO_TAG, SEP, LanguageObjective, SequenceInput
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskBatch
from unimo_ds.finetune.model import NoHead, TaskModel, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.reads import WRITING
from unimo_ds.finetune.task import Evaluation, Examples, Task
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.generation.generate import GenerationSettings, generate


def with_target(prompt: SequenceInput, target: Tokens, *, end_id: int) -> SequenceInput:
    """The training example: `prompt`, then [CLS] target END, of which everything except [CLS] is to be predicted.

    target: without special tokens. It has no tags.
    """
    written = np.concatenate(([CLS], target, [end_id])).astype(np.int32)
    positions = np.arange(FIRST_POSITION, FIRST_POSITION + len(written), dtype=np.int32)
    ids, before, tags = prompt.token_ids, prompt.token_positions, prompt.token_tags
    return dataclasses.replace(
        prompt,
        token_ids=written if ids is None else np.concatenate((ids, written)),
        token_positions=positions if before is None else np.concatenate((before, positions)),
        token_tags=None if tags is None else np.pad(tags, ((0, 0), (0, len(written))), constant_values=NO_TAG),
        language_objective=LanguageObjective.SEQUENCE_TO_SEQUENCE,
        language_at=np.arange(prompt.length, prompt.length + len(written) - 1, dtype=np.int32),
        language_targets=written[1:],
    )


class WritingExamples(Examples, Protocol):
    """`task.Examples` that also give prompts for writing."""

    @property
    def num_prompts(self) -> int:
        """Number of texts to write; an image with several captions counts once."""
        ...

    def prompt_key(self, number: int) -> str: ...

    def prompt_length(self, number: int) -> int: ...

    def prompt(self, number: int) -> SequenceInput: ...

    def references(self, number: int) -> list[str]:
        """Reference texts written by people; empty if the file has none."""
        ...

    def official(self, number: int, text: str) -> dict[str, Any] | None:
        """This text's entry in the task's official answer file; None if there is no such file."""
        ...


class WritingTask(Task):
    """The shared part of all tasks that write text; a task's file defines how its lines are read and what is measured."""

    reads: tuple[str, ...] = WRITING
    ends_with_mask = True
    """Texts end with [MASK] in the text tasks, with [SEP] in captioning."""

    def measure(
        self, written: Sequence[str], references: Sequence[Sequence[str]], *, quick: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics and notes of texts, each with its references. quick: as in `evaluate`."""
        raise NotImplementedError

    def generation_settings(self, config: RunConfig, tokenizer: Tokenizer) -> GenerationSettings:
        """How a model fine-tuned with `config` decodes its texts."""
        generation = config.finetuning.generation
        return GenerationSettings(
            num_beams=generation.beams,
            length_penalty=generation.length_penalty,
            min_tokens=generation.min_tokens,
            max_tokens=generation.max_tokens,
            no_repeat_words=3 if generation.block_trigrams else 0,
            end_id=tokenizer.mask_id if self.ends_with_mask else SEP,
        )

    def sources_of(self, text: str) -> tuple[str, ...]:
        """The source texts that a user gives as one.

        Raises:
            UserError: some are missing.
        """
        return (text,)

    def make_head(self, config: RunConfig) -> nn.Module:
        return NoHead()

    def count(self, batch: TaskBatch) -> int:
        return len(batch.language_at)

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """Cross-entropy of every target token, with the recipe's label smoothing."""
        return output.language_losses.sum()

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        """Decode a text for every prompt and compare it with its references."""
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
        # The packages measure in processes of their own, so only the first rank does it.
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
    """The best text for every prompt, on every rank. A collective; not for ZeRO-3, where all ranks would have to write the same
    number of tokens.
    """
    model = engine.module
    assert isinstance(model, TaskModel)
    vocabulary = Vocabulary.of(tokenizer)

    def run(items: NDArray[np.int64]) -> list[str]:
        prompts = [examples.prompt(item) for item in items.tolist()]
        found = generate(model, prompts, vocabulary, settings) if prompts else []
        return [tokenizer.decode(texts[0].tokens).strip() for texts in found]

    lengths = np.array([examples.prompt_length(number) for number in range(examples.num_prompts)], np.int64)
    parts = predict.over_ranks(engine.communicator, lengths, run, micro_batch_tokens=micro_batch_tokens)
    return [text for part in parts for text in part]
