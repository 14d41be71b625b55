"""The encoder and its pre-training heads as `PreTrainedModel`s. The weights are those of `Unimo`, under `unimo.`.

Letters: B inputs, R image positions ([IMG] first), L text positions, D hidden size, V vocabulary, F region features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from unimo_ds.data.schema import PackedBatch
from unimo_ds.huggingface.configuration import UnimoConfig
from unimo_ds.huggingface.packing import Grid, PaddedInputs, pack_padded
from unimo_ds.models.heads import Temperature
from unimo_ds.models.unimo import Unimo

IGNORED = -100
"""Label of positions without a target, as everywhere in transformers."""


class UnimoPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The shared part of all classes of the family: a `Unimo`, and inputs as padded tensors."""

    config_class = UnimoConfig
    base_model_prefix = "unimo"
    supports_gradient_checkpointing = True
    # Losses are means over a batch, so `Trainer` itself must divide those of accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        self.unimo = Unimo(
            config.sizes(),
            temperature=config.contrastive_temperature,
            min_temperature=config.min_contrastive_temperature,
            max_temperature=config.max_contrastive_temperature,
        )
        self.add_head(config)
        self.post_init()

    def add_head(self, config: UnimoConfig) -> None:
        """Adds what a class has besides the `Unimo`."""

    def get_input_embeddings(self) -> nn.Module:
        return self.unimo.text_embedding.word

    def gradient_checkpointing_enable(self, *unused: Any, **others: Any) -> None:
        self.unimo.activation_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.unimo.activation_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.unimo.activation_checkpointing

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """`models.initialize` for modules that are missing in a loaded folder."""
        if isinstance(module, Temperature):
            fresh = Temperature(
                initial=self.config.contrastive_temperature, minimum=module.minimum, maximum=module.maximum
            )
            init.copy_(module.raw, fresh.raw)
            return
        deviation = self.config.initializer_range
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
            elif name in ("weight", "bias"):
                init.constant_(parameter, 1.0 if name == "weight" else 0.0)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            init.zeros_(module.weight[module.padding_idx])

    def encode(self, inputs: PaddedInputs) -> tuple[torch.Tensor, Grid]:
        """Hidden states of the stream [T, D], and the positions of the stream."""
        batch, grid = self.pack(inputs)
        return self.unimo.encode(batch, self.further_embeddings(batch)), grid

    def pack(self, inputs: PaddedInputs) -> tuple[PackedBatch, Grid]:
        """`pack_padded` for the sizes of this model."""
        sizes = self.config
        return pack_padded(inputs, feature_size=sizes.region_feature_size, max_positions=sizes.max_position_embeddings)

    def further_embeddings(self, batch: PackedBatch) -> torch.Tensor | None:
        """[N_text, D] to be added to the text tokens' embeddings, if a class has such."""
        return None

    def pooled(self, hidden_TD: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """The pooled [IMG] and [CLS] of each input, [B, D] each; meaningless if the input has no such part."""
        images = self.unimo.image_pooler(grid.unpacked(hidden_TD)[:, 0])
        return images, self.unimo.text_pooler(grid.first_token(hidden_TD))


@dataclass
class UnimoModelOutput(ModelOutput):  # type: ignore[misc]
    """Output of the encoder without heads."""

    last_hidden_state: torch.Tensor | None = None
    """[B, R + L, D], zero at padding."""
    image_pooled: torch.Tensor | None = None
    """[B, D], the pooled [IMG]; None without images."""
    text_pooled: torch.Tensor | None = None
    """[B, D], the pooled [CLS]; None without texts."""


class UnimoModel(UnimoPreTrainedModel):
    """Encoder and poolers. `get_image_features` and `get_text_features` return the vectors for retrieval."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        **unused: Any,
    ) -> ModelOutput:
        """input_ids, attention_mask: [B, L]. region_features: [B, R, F], region_boxes: [B, R, 5], region_mask: [B, R], as the
        processor makes them: [IMG] first. Texts, images, or both.
        """
        inputs = PaddedInputs(input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags)
        return self.outputs(*self.encode(inputs))

    def outputs(self, hidden_TD: torch.Tensor, grid: Grid) -> ModelOutput:
        """Outputs computed from the hidden states."""
        images, texts = self.pooled(hidden_TD, grid)
        return UnimoModelOutput(
            last_hidden_state=grid.unpacked(hidden_TD),
            image_pooled=images if grid.num_regions else None,
            text_pooled=texts if grid.num_tokens else None,
        )

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **unused: Any
    ) -> torch.Tensor:
        """[B, D] of unit length: single encodings of texts."""
        _, pooled = self.pooled(*self.encode(PaddedInputs(input_ids, attention_mask, None, None, None)))
        return functional.normalize(pooled, dim=-1)

    def get_image_features(
        self,
        region_features: torch.Tensor,
        region_boxes: torch.Tensor,
        region_mask: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """[B, D] of unit length: single encodings of images."""
        inputs = PaddedInputs(None, None, region_features, region_boxes, region_mask, region_tags)
        pooled, _ = self.pooled(*self.encode(inputs))
        return functional.normalize(pooled, dim=-1)


@dataclass
class UnimoForPreTrainingOutput(ModelOutput):  # type: ignore[misc]
    """Output of all pre-training heads."""

    prediction_logits: torch.Tensor | None = None
    """[B, L, V]"""
    region_predictions: torch.Tensor | None = None
    """[B, R, F]"""
    region_class_logits: torch.Tensor | None = None
    """[B, R, C]"""
    image_pooled: torch.Tensor | None = None
    text_pooled: torch.Tensor | None = None
    """[B, D]"""
    temperature: torch.Tensor | None = None
    """Scalar."""


class UnimoForPreTraining(UnimoModel):
    """All weights of a pre-training run, and the outputs of its heads. The objectives themselves are in `unimo_ds.tasks`."""

    def outputs(self, hidden_TD: torch.Tensor, grid: Grid) -> ModelOutput:
        hidden = grid.unpacked(hidden_TD)
        images, texts = hidden[:, : grid.num_regions], hidden[:, grid.num_regions :]
        output = UnimoForPreTrainingOutput(temperature=self.unimo.temperature())
        if grid.num_regions:
            output["region_predictions"] = self.unimo.region_regression(images)
            output["region_class_logits"] = self.unimo.region_classification(images)
            output["image_pooled"] = self.unimo.image_pooler(images[:, 0])
        if grid.num_tokens:
            output["prediction_logits"] = self.unimo.language_head(texts)[0]
            output["text_pooled"] = self.unimo.text_pooler(grid.first_token(hidden_TD))
        return output


@dataclass
class UnimoLogitsOutput(ModelOutput):  # type: ignore[misc]
    """Output of every class with one head."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class UnimoLabelledModel(UnimoPreTrainedModel):
    """One head on texts or on pairs, and labels for its output."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_tags: torch.Tensor | None = None,
        **unused: Any,
    ) -> UnimoLogitsOutput:
        """labels: as the class's `loss` takes them. The rest as in `UnimoModel.forward`."""
        inputs = PaddedInputs(input_ids, attention_mask, region_features, region_boxes, region_mask, region_tags)
        logits = self.logits(*self.encode(inputs))
        return UnimoLogitsOutput(loss=None if labels is None else self.loss(logits, labels), logits=logits)

    def logits(self, hidden_TD: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Output of the head."""
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
        """Scalar; None if the class has no loss."""
        raise NotImplementedError


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of [B, L, V] logits. labels: [B, L], -100 at positions without a target."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


class UnimoForMaskedLM(UnimoLabelledModel):
    """Predicts tokens at masked positions, with or without an image. labels: [B, L], -100 elsewhere. Logits: [B, L, V]."""

    loss = staticmethod(token_loss)

    def logits(self, hidden_TD: torch.Tensor, grid: Grid) -> torch.Tensor:
        logits: torch.Tensor = self.unimo.language_head(grid.unpacked(hidden_TD)[:, grid.num_regions :])[0]
        return logits
