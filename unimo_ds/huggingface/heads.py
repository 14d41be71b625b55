"""Heads of the paper's tasks as `PreTrainedModel`s. Their weights have the names that fine-tuning gives them: `head.scores.*`.

Letters: B inputs, R image positions, L source and M target positions, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from unimo_ds.data.schema import CLS, PackedBatch
from unimo_ds.generation.decoding import PrefixCache, encode_prefixes
from unimo_ds.generation.mixin import PrefixGenerationMixin, gnmt_length
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.modeling import IGNORED, UnimoLogitsOutput, UnimoPreTrainedModel, predicted
from unimo_ds.huggingface.packing import PaddedInputs, pack_padded
from unimo_ds.models.embeddings import TagTables


class Head(nn.Module):
    """The modules of a head, `output` the last one, under the names of `unimo_ds.finetune`."""

    def __init__(self, size: int, num_outputs: int, *, middle: int | None = None) -> None:
        super().__init__()
        if middle is not None:
            self.middle = nn.Linear(size, middle)
        self.output = nn.Linear(size if middle is None else middle, num_outputs)


class Scores(nn.Module):
    """A head under the name `scores`."""

    def __init__(self, size: int, num_outputs: int, *, middle: int | None = None) -> None:
        super().__init__()
        self.scores = Head(size, num_outputs, middle=middle)


class Tags(nn.Module):
    """Tables of tags under the name `tags`."""

    def __init__(self, sizes: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.tags = TagTables(sizes, hidden_size)


class UnimoForConditionalGeneration(UnimoPreTrainedModel, PrefixGenerationMixin):
    """A target text from an image, a source text, or both: captions, summaries, questions, answers in a conversation."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        if config.tag_sizes:
            self.head = Tags(config.tag_sizes, config.hidden_size)
        if config.gnmt_length_penalty:
            self.penalised_length = gnmt_length
        self.post_init()

    def further_embeddings(self, batch: PackedBatch) -> torch.Tensor | None:
        if not len(batch.token_tags):
            return None
        if not self.config.tag_sizes:
            raise ValueError("token_tags are given to a model whose configuration has no tag_sizes")
        embedded: torch.Tensor = self.head.tags(batch.token_tags)
        return embedded

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
        return_dict: bool | None = None,
        **unused: Any,
    ) -> Any:
        """input_ids: [B, L] source. labels: [B, M] target with its end and without [CLS], -100 where it is padding.

        token_tags: [B, G, L] of a model that has tags (`UnimoProcessor.conversations`).
        decoder_input_ids: [B, M], [CLS] first; made of the labels where they are not given. Logits: [B, M, V].
        """
        if past_key_values is not None:
            assert decoder_input_ids is not None
            return self.next_token_logits(decoder_input_ids, past_key_values)
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
        return predicted(logits, labels, return_dict)

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
        **arguments: Any,
    ) -> Any:
        """Targets, [CLS] first, for each input. arguments: of `GenerationMixin.generate` (num_beams, max_new_tokens, ...)."""
        inputs = PaddedInputs(
            input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags, token_tags=token_tags
        )
        batch, _ = pack_padded(inputs, feature_size=self.config.region_feature_size)
        prefixes = encode_prefixes(self.unimo, batch, self.further_embeddings(batch))
        return self.generate_from(prefixes, **arguments)


class UnimoPooledModel(UnimoPreTrainedModel):
    """Poolers, dropout, and a head on them."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.head = self.make_head(config)
        self.post_init()

    def make_head(self, config: UnimoConfig) -> Scores:
        return Scores(config.hidden_size, config.num_labels or 1)


class UnimoForSequenceClassification(UnimoPooledModel):
    """Text pooler, dropout, FC: SST-2, MNLI, CoLA; a number instead of classes where `num_labels` is 1: STS-B."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> UnimoLogitsOutput | tuple[Any, ...]:
        """labels: [B] int64 classes, or numbers where `num_labels` is 1. Logits: [B, C]."""
        inputs = PaddedInputs(input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags)
        _, texts = self.pooled(inputs)
        return classified(self.head.scores.output(self.dropout(texts)), labels, return_dict)


class UnimoForVisualEntailment(UnimoPooledModel):
    """Sum of both poolers, FC to 2048, dropout, FC: SNLI-VE."""

    def make_head(self, config: UnimoConfig) -> Scores:
        return Scores(config.hidden_size, config.num_labels or 1, middle=config.classifier_hidden_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        region_features: torch.Tensor,
        region_boxes: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> UnimoLogitsOutput | tuple[Any, ...]:
        """labels: [B] int64. Logits: [B, C]."""
        images, texts = self.pooled(
            PaddedInputs(input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags)
        )
        head = self.head.scores
        return classified(head.output(self.dropout(head.middle(images + texts))), labels, return_dict)


class UnimoForVisualQuestionAnswering(UnimoPooledModel):
    """FC(dropout(text pooler * image pooler)) to a score of each answer of the vocabulary (`num_labels` of them): VQA."""

    def forward(
        self,
        input_ids: torch.Tensor,
        region_features: torch.Tensor,
        region_boxes: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> UnimoLogitsOutput | tuple[Any, ...]:
        """labels: [B, A] soft scores in [0, 1]; their loss is summed over answers. Logits: [B, A]."""
        images, texts = self.pooled(
            PaddedInputs(input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags)
        )
        logits = self.head.scores.output(self.dropout(images * texts))
        output = UnimoLogitsOutput(logits=logits)
        if labels is not None:
            loss = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
            output["loss"] = loss / len(labels)
        return output if return_dict is not False else output.to_tuple()


class UnimoForImageTextRetrieval(UnimoPooledModel):
    """FC(dropout(text pooler * image pooler)) to one score of an image and a text encoded together: Flickr30k retrieval."""

    def make_head(self, config: UnimoConfig) -> Scores:
        return Scores(config.hidden_size, 1)

    def forward(
        self,
        input_ids: torch.Tensor,
        region_features: torch.Tensor,
        region_boxes: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> UnimoLogitsOutput | tuple[Any, ...]:
        """Logits: [B] scores."""
        images, texts = self.pooled(
            PaddedInputs(input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags)
        )
        output = UnimoLogitsOutput(logits=self.head.scores.output(self.dropout(images * texts)).squeeze(-1))
        return output if return_dict is not False else output.to_tuple()


def classified(
    logits: torch.Tensor, labels: torch.Tensor | None, return_dict: bool | None
) -> UnimoLogitsOutput | tuple[Any, ...]:
    """[B, C] logits with their loss: cross-entropy, or the squared error of a single number."""
    output = UnimoLogitsOutput(logits=logits)
    if labels is not None:
        is_number = logits.shape[-1] == 1
        output["loss"] = (
            functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
            if is_number
            else functional.cross_entropy(logits, labels)
        )
    return output if return_dict is not False else output.to_tuple()
