"""The pre-trained model plus a task's head: pre-training's weights keep their names, the head's start with `head.`.

So a pre-trained checkpoint fills everything except the head, and a fine-tuned one is still a pre-trained model plus one part.

Letters: S sequences, N rows, D hidden size, K outputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.schema import PackedBatch
from unimo_ds.models.embeddings import TagTables
from unimo_ds.models.initialize import initialize
from unimo_ds.models.layers import SITES_PER_LAYER, Linear
from unimo_ds.models.unimo import ModelOutput, Unimo, options_of
from unimo_ds.ops.dropout import dropout
from unimo_ds.ops.layout import Layout
from unimo_ds.utils import seed
from unimo_ds.utils.seed import mix

HEAD_PREFIX = "head."
_HEAD_SEED = 0x68656164


@dataclass(frozen=True, kw_only=True)
class TaskOutput(ModelOutput):
    """What the task's loss needs besides pre-training's outputs."""

    scores: torch.Tensor
    """[S, K] of the head; [S, 0] for tasks that write text."""
    language_logits: torch.Tensor
    """[N_language, V] if adversarial training compares distributions, else [0, 0]."""


class HeadDropout(nn.Module):
    """Dropout of a head's input, keyed by the sequences' first positions, [S] int32: masks do not depend on rank or stream."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.probability = config.finetuning.head_dropout
        self.site = (config.model.num_layers + 1) * SITES_PER_LAYER  # after the sites of all layers

    def forward(self, vectors_SD: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
        probability = self.probability if self.training else 0.0
        return dropout(vectors_SD, keys_S, probability=probability, site=self.site)


class TextHead(nn.Module):
    """Pooled [CLS] -> dropout -> FC, as in the release."""

    def __init__(self, config: RunConfig, *, num_outputs: int) -> None:
        super().__init__()
        self.dropout = HeadDropout(config)
        self.output = Linear(config.model.hidden_size, num_outputs)

    def forward(self, texts_SD: torch.Tensor, images_SD: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.output(self.dropout(texts_SD, keys_S))
        return scores


class ProductHead(TextHead):
    """Pooled [CLS] * pooled [IMG] -> dropout -> FC, as in the release: how well an image and a text match."""

    def forward(self, texts_SD: torch.Tensor, images_SD: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
        texts_SD, images_SD, keys_S = _joint(texts_SD, images_SD, keys_S)
        scores: torch.Tensor = self.output(self.dropout(texts_SD * images_SD, keys_S))
        return scores


class SumHead(nn.Module):
    """Pooled [CLS] + pooled [IMG] -> FC -> dropout -> FC, without an activation between, as in the release."""

    def __init__(self, config: RunConfig, *, num_outputs: int, middle: int) -> None:
        super().__init__()
        self.middle = Linear(config.model.hidden_size, middle)
        self.dropout = HeadDropout(config)
        self.output = Linear(middle, num_outputs)

    def forward(self, texts_SD: torch.Tensor, images_SD: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
        texts_SD, images_SD, keys_S = _joint(texts_SD, images_SD, keys_S)
        scores: torch.Tensor = self.output(self.dropout(self.middle(texts_SD + images_SD), keys_S))
        return scores


def _joint(
    texts_SD: torch.Tensor, images_SD: torch.Tensor, keys_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """No rows if the sequences are not pairs: a single encoding of an image or text has no counterpart to be joined with."""
    if len(texts_SD) == len(images_SD) == len(keys_S):
        return texts_SD, images_SD, keys_S
    return texts_SD[:0], images_SD[:0], keys_S[:0]


class NoHead(nn.Module):
    """For tasks that write text: they use only pre-training's language head."""

    def forward(self, texts_SD: torch.Tensor, images_SD: torch.Tensor, keys_S: torch.Tensor) -> torch.Tensor:
        return keys_S.new_zeros((len(keys_S), 0), dtype=torch.float32)


class TaskModel(Unimo):
    """`Unimo` with a head, and embedding tables for tags of text tokens if the task has any."""

    def __init__(self, config: RunConfig, head: nn.Module, *, tag_sizes: tuple[int, ...] = ()) -> None:
        """tag_sizes: rows of each tag table. Fresh weights are determined by `config.seed`."""
        super().__init__(config.model, **options_of(config))
        self.language_head.smoothing = config.finetuning.label_smoothing
        self._keeps_logits = config.finetuning.adversarial.steps > 0
        self.head = nn.ModuleDict({"scores": head})
        self.head["tags"] = TagTables(tag_sizes, config.model.hidden_size)
        generator = torch.Generator().manual_seed(mix(config.seed, _HEAD_SEED))
        initialize(self.head, deviation=config.model.initializer_range, generator=generator)

    def forward(self, batch: PackedBatch, text_addition_ND: torch.Tensor | None = None) -> TaskOutput:
        """text_addition_ND: as in `Unimo`."""
        rows = self.read_rows(batch, text_addition_ND)
        output = self.run_heads(rows, batch)
        logits = rows.texts.new_zeros(0, 0)
        if self.training and self._keeps_logits:
            logits, _ = self.language_head(rows.language)
        starts = torch.zeros(batch.num_sequences, dtype=torch.int32, device=batch.sequence_seeds.device)
        sequences = torch.arange(batch.num_sequences, device=starts.device)
        keys_S = seed.position_keys(batch.sequence_seeds, sequences, starts)
        scores_SK = self.head["scores"](output.pooled_texts, output.pooled_images, keys_S)
        fields = {item.name: getattr(output, item.name) for item in dataclasses.fields(ModelOutput)}
        return TaskOutput(**fields, scores=scores_SK, language_logits=logits)

    def embed(self, batch: PackedBatch, layout: Layout, text_addition_ND: torch.Tensor | None = None) -> torch.Tensor:
        """As in `Unimo`, with the tags' embeddings added to those of the tokens."""
        tables = self.head["tags"]
        assert isinstance(tables, TagTables)
        if len(tables):
            has_tags = len(batch.token_tags) > 0
            # Also if there are no rows: every rank must run the same modules.
            embedded_ND = tables(batch.token_tags if has_tags else batch.token_tags.new_zeros(len(tables), 0))
            if has_tags:
                text_addition_ND = embedded_ND if text_addition_ND is None else text_addition_ND + embedded_ND
        return super().embed(batch, layout, text_addition_ND)
