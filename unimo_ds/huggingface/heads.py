"""Heads for the paper's tasks as `PreTrainedModel`s. Their weights have the same names as in fine-tuning: `head.scores.*`.

Letters: B inputs, R image positions, L source and M target positions, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.utils.generic import can_return_tuple

from unimo_ds.data.schema import CLS, PackedBatch
from unimo_ds.generation.decoding import PrefixCache, encode_prefixes
from unimo_ds.generation.mixin import PrefixGenerationMixin, gnmt_length
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.modeling import (
    IGNORED,
    UnimoLabelledModel,
    UnimoLogitsOutput,
    UnimoPreTrainedModel,
    token_loss,
)
from unimo_ds.huggingface.packing import Grid, PaddedInputs
from unimo_ds.models.embeddings import TagTables


def scores(config: UnimoConfig, num_outputs: int, *, middle: int | None = None) -> nn.ModuleDict:
    """The layers of a head, the last one called `output`, named as in `unimo_ds.finetune`."""
    size = config.hidden_size
    layers = {} if middle is None else {"middle": nn.Linear(size, middle)}
    layers["output"] = nn.Linear(middle or size, num_outputs)
    return nn.ModuleDict({"scores": nn.ModuleDict(layers)})


class UnimoForConditionalGeneration(UnimoPreTrainedModel, PrefixGenerationMixin):
    """A target text from an image, a source text, or both: captions, summaries, questions, answers in a conversation."""

    def add_head(self, config: UnimoConfig) -> None:
        if config.tag_sizes:
            self.head = nn.ModuleDict({"tags": TagTables(config.tag_sizes, config.hidden_size)})
        if config.gnmt_length_penalty:
            self.penalised_length = gnmt_length

    def further_embeddings(self, batch: PackedBatch) -> torch.Tensor | None:
        if not len(batch.token_tags):
            return None
        if not self.config.tag_sizes:
            raise ValueError("token_tags are given to a model whose configuration has no tag_sizes")
        embedded: torch.Tensor = self.head["tags"](batch.token_tags)
        return embedded

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        token_tags: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: PrefixCache | None = None,
        region_tags: torch.Tensor | None = None,
        logits_to_keep: int = 1,
        **unused: Any,
    ) -> Any:
        """input_ids: [B, L] source. labels: [B, M] target with its end token and without [CLS], -100 at padding.

        token_tags: [B, G, L], for a model with tags (`UnimoProcessor.conversations`).
        decoder_input_ids: [B, M], [CLS] first; made from the labels if not given. Logits: [B, M, V].
        past_key_values, logits_to_keep: for a step of `generate`, which returns the logits of the last tokens.
        """
        if past_key_values is not None:
            assert decoder_input_ids is not None
            return self.next_token_logits(decoder_input_ids, past_key_values, logits_to_keep)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give labels or decoder_input_ids; generate() makes a target")
            known = labels.masked_fill(labels == IGNORED, self.config.pad_token_id)
            decoder_input_ids = torch.cat([torch.full_like(known[:, :1], CLS), known[:, :-1]], dim=1)
        inputs = PaddedInputs(
            input_ids,
            attention_mask,
            region_features,
            region_boxes,
            region_mask,
            region_tags,
            decoder_input_ids,
            token_tags,
        )
        hidden_TD, grid = self.encode(inputs)
        targets = grid.unpacked(hidden_TD)[:, grid.num_regions + grid.num_tokens :]
        logits, _ = self.unimo.language_head(targets)
        return UnimoLogitsOutput(loss=None if labels is None else token_loss(logits, labels), logits=logits)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        token_tags: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        """Targets for each input, [CLS] first. arguments: of `GenerationMixin.generate` (num_beams, max_new_tokens, ...).

        labels: ignored; `Seq2SeqTrainer` passes whole batches. There is no dropout, not even in training mode; the mode is
        not changed.
        """
        inputs = PaddedInputs(
            input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags, token_tags=token_tags
        )
        batch, _ = self.pack(inputs)
        was_training = self.training
        self.eval()
        try:
            prefixes = encode_prefixes(self.unimo, batch, self.further_embeddings(batch))
            return self.generate_from(prefixes, **arguments)
        finally:
            self.train(was_training)


class UnimoPooledModel(UnimoLabelledModel):
    """Poolers, dropout, and a head on top."""

    def add_head(self, config: UnimoConfig) -> None:
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.head = self.make_head(config)

    def make_head(self, config: UnimoConfig) -> nn.ModuleDict:
        return scores(config, config.num_labels or 1)

    def output(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head.get_submodule("scores.output")(self.dropout(vectors_BD))
        return logits

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
        """Loss of `problem_type` for [B, C] logits; if that is not set, the squared error of a single number, or the
        cross-entropy of classes."""
        kind = self.config.problem_type or ("regression" if logits.shape[-1] == 1 else "")
        if kind == "regression":
            return functional.mse_loss(logits.flatten(), labels.to(logits.dtype).flatten())
        if kind == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels)


class UnimoForSequenceClassification(UnimoPooledModel):
    """Text pooler, dropout, FC: SST-2, MNLI, CoLA; one number instead of classes if `num_labels` is 1: STS-B.

    labels: [B] int64 classes, or numbers if `num_labels` is 1, or what `problem_type` requires. Logits: [B, C].
    """

    def logits(self, hidden_TD: torch.Tensor, grid: Grid) -> torch.Tensor:
        _, texts = self.pooled(hidden_TD, grid)
        return self.output(texts)


class UnimoPairModel(UnimoPooledModel):
    """FC(dropout(text pooler * image pooler)) of a jointly encoded image and text."""

    def logits(self, hidden_TD: torch.Tensor, grid: Grid) -> torch.Tensor:
        if not grid.num_regions:
            raise ValueError(
                f"{type(self).__name__} wants an image with each text: give region_features and region_boxes"
            )
        return self.output(self.joined(*self.pooled(hidden_TD, grid)))

    def joined(self, images_BD: torch.Tensor, texts_BD: torch.Tensor) -> torch.Tensor:
        """Input of the dropout before the last layer."""
        return images_BD * texts_BD


class UnimoForVisualEntailment(UnimoPairModel):
    """Sum of both poolers, FC to 2048, dropout, FC: SNLI-VE. labels: [B] int64. Logits: [B, C]."""

    def make_head(self, config: UnimoConfig) -> nn.ModuleDict:
        return scores(config, config.num_labels or 1, middle=config.classifier_hidden_size)

    def joined(self, images_BD: torch.Tensor, texts_BD: torch.Tensor) -> torch.Tensor:
        middle: torch.Tensor = self.head.get_submodule("scores.middle")(images_BD + texts_BD)
        return middle


class UnimoForVisualQuestionAnswering(UnimoPairModel):
    """A score for each answer of the vocabulary (`num_labels` of them): VQA. Logits: [B, A]."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """labels: [B, A] soft scores in [0, 1]; the loss is summed over answers."""
        loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        return loss / len(labels)


class UnimoForImageTextRetrieval(UnimoPairModel):
    """One score for an image and a text: Flickr30k retrieval. Logits: [B]."""

    def make_head(self, config: UnimoConfig) -> nn.ModuleDict:
        return scores(config, 1)

    def logits(self, hidden_TD: torch.Tensor, grid: Grid) -> torch.Tensor:
        return super().logits(hidden_TD, grid).squeeze(-1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """None: the loss of a pair is defined only relative to other pairs."""
