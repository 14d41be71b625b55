"""UNIMO: one Transformer over a packed stream of images, texts and image-text pairs (paper section 2; sizes from its release).

Letters: T stream positions, D hidden size, F region feature size, C region classes, N_* rows of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unimo_ds.config import ContrastConfig, ModelConfig, RunConfig
from unimo_ds.data.schema import PackedBatch
from unimo_ds.models.embeddings import RegionEmbedding, TextEmbedding
from unimo_ds.models.heads import LanguageHead, ObjectiveHead, Pooler, Temperature
from unimo_ds.models.image_transformer import ImageTransformer
from unimo_ds.models.initialize import initialize
from unimo_ds.models.layers import EncoderLayer, Linear
from unimo_ds.ops.dropout import dropout
from unimo_ds.ops.layout import Layout

EMBEDDING_SITE = 0
"""Identifies this dropout in the keys of its masks; the layers' dropouts are numbered after it (`layers.py`)."""
OBJECTIVE_HEADS = "objective_heads."
"""Prefix of their parameter names; only pre-training uses them."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What the losses need. Any number of rows may be zero; every tensor is still part of the autograd graph."""

    language_losses: torch.Tensor
    """[N_language] fp32, cross-entropy of each predicted token."""
    language_correct: torch.Tensor | None
    """[N_language] bool, whether the target has the highest logit; None in training."""
    region_predictions: torch.Tensor
    """[N_masked, F]"""
    region_class_logits: torch.Tensor
    """[N_masked, C]"""
    pooled_images: torch.Tensor
    """[N_pooled_images, D]"""
    pooled_texts: torch.Tensor
    """[N_pooled_texts, D]"""
    temperature: torch.Tensor
    """Scalar fp32."""
    heads: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Output of each objective's own head, by objective."""


def anchor(output: ModelOutput) -> torch.Tensor:
    """Zero, connected to every output: each rank runs the same backward whatever its mix of samples (ZeRO-3 needs it)."""
    rows = [
        tensor[:0].flatten().float()
        for tensor in (*vars(output).values(), *output.heads.values())
        if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.is_floating_point()
    ]
    return torch.cat(rows).sum() + output.temperature * 0.0


class Rows(NamedTuple):
    """Hidden states of the last layer, [N_*, D] each."""

    language: torch.Tensor
    masked_regions: torch.Tensor
    images: torch.Tensor
    texts: torch.Tensor
    heads: Mapping[str, torch.Tensor]


class Unimo(nn.Module):
    """The model of all objectives: a language head (masked and sequence-to-sequence targets), heads for masked regions (feature
    regression, class distribution), and poolers of [IMG] and [CLS] for CMCL.

    temperature, min_temperature, max_temperature: initial value and range of the contrastive temperature. attention: path of
    the packed attention op. activation_checkpointing: keep only the layers' inputs and recompute the rest in the backward pass;
    dropout is keyed by seeds, so results are bit-identical. seed: of the initial weights. heads: the objectives' own heads, by
    objective (`tasks/objective.py`).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        temperature: float = ContrastConfig.temperature,
        min_temperature: float = ContrastConfig.min_temperature,
        max_temperature: float = ContrastConfig.max_temperature,
        attention: str = "auto",
        activation_checkpointing: bool = False,
        seed: int = 0,
        heads: Mapping[str, ObjectiveHead] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.text_embedding = TextEmbedding(config)
        self.image_transformer = ImageTransformer(config, path=attention) if config.num_image_layers else None
        self.region_embedding = RegionEmbedding(config)
        self.layers = nn.ModuleList(
            EncoderLayer(config, number=number, path=attention) for number in range(config.num_layers)
        )
        self.text_pooler = Pooler(config)
        self.image_pooler = Pooler(config)
        self.language_head = LanguageHead(config, self.text_embedding)
        self.region_regression = Linear(config.hidden_size, config.region_feature_size)
        self.region_classification = Linear(config.hidden_size, config.num_region_classes)
        self.temperature = Temperature(initial=temperature, minimum=min_temperature, maximum=max_temperature)
        self.objective_heads = nn.ModuleDict(heads)
        generator = torch.Generator().manual_seed(seed)
        initialize(self, deviation=config.initializer_range, generator=generator)

    def forward(self, batch: PackedBatch, text_addition_ND: torch.Tensor | None = None) -> ModelOutput:
        """Encode the stream, then run every head on its rows, always in this order, whatever the batch holds.

        text_addition_ND: [N_text, D] added to the embedding sums of the text tokens (further embeddings, adversarial noise).
        """
        return self.run_heads(self.read_rows(batch, text_addition_ND), batch)

    def read_rows(self, batch: PackedBatch, text_addition_ND: torch.Tensor | None = None) -> Rows:
        """Hidden states of the last layer, computed only at the positions that heads use. Arguments as in `forward`."""
        further = {
            # Not needed without gradients (in evaluation, and in the rehearsal of `engine/contrast.py`).
            name: cast(ObjectiveHead, head).positions(batch) if torch.is_grad_enabled() else batch.pooled_text_at[:0]
            for name, head in self.objective_heads.items()
        }
        readers = (
            batch.language_at,
            batch.masked_region_at,
            batch.pooled_image_at,
            batch.pooled_text_at,
            *further.values(),
        )
        hidden_ND = self._run_layers(batch, rows_N=torch.cat(readers), text_addition_ND=text_addition_ND)
        language, masked_regions, images, texts, *others = torch.split(hidden_ND, [len(rows) for rows in readers])
        return Rows(language, masked_regions, images, texts, dict(zip(further, others, strict=True)))

    def run_heads(self, rows: Rows, batch: PackedBatch) -> ModelOutput:
        """Every head on its rows."""
        language_losses, language_correct = self.language_head(rows.language, batch.language_targets)
        return ModelOutput(
            language_losses=language_losses,
            language_correct=language_correct,
            region_predictions=self.region_regression(rows.masked_regions),
            region_class_logits=self.region_classification(rows.masked_regions),
            pooled_images=self.image_pooler(rows.images),
            pooled_texts=self.text_pooler(rows.texts),
            temperature=self.temperature(),
            heads={name: head(rows.heads[name]) for name, head in self.objective_heads.items()},
        )

    def encode(self, batch: PackedBatch, text_addition_ND: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of the last layer, [T, D]. Arguments as in `forward`."""
        return self._run_layers(batch, rows_N=None, text_addition_ND=text_addition_ND)

    def _run_layers(
        self, batch: PackedBatch, *, rows_N: torch.Tensor | None, text_addition_ND: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states of the last layer at the stream positions `rows_N` (which may repeat), or at all if None."""
        layout = layout_of(batch)
        hidden_TD = self.embed(batch, layout, text_addition_ND)
        for number, layer in enumerate(self.layers, start=1):
            rows = rows_N if number == len(self.layers) else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden_TD = checkpoint(layer, hidden_TD, layout, rows, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden_TD = layer(hidden_TD, layout, rows)
        return hidden_TD

    def embed(self, batch: PackedBatch, layout: Layout, text_addition_ND: torch.Tensor | None = None) -> torch.Tensor:
        """Inputs of the first layer, [T, D]."""
        text = self.text_embedding(batch.token_ids, batch.token_positions, text_addition_ND)
        regions = self.embed_images(batch).index_select(0, batch.region_row)
        embedded_TD = text.new_zeros((batch.num_positions, self.config.hidden_size))
        embedded_TD = embedded_TD.index_copy(0, batch.token_at, text).index_copy(0, batch.region_at, regions)
        probability = self.config.hidden_dropout if self.training else 0.0
        return dropout(embedded_TD, layout.position_keys, probability=probability, site=EMBEDDING_SITE)

    def embed_images(self, batch: PackedBatch) -> torch.Tensor:
        """[N_rows, D] image inputs: from stored regions, or from what the image Transformer makes of patches."""
        features, tags = batch.region_features, batch.region_tags
        if self.image_transformer is not None:
            features = self.image_transformer(
                features,
                tags,
                batch.image_starts,
                longest=batch.longest_image,
                activation_checkpointing=self.activation_checkpointing,
            )
            tags = tags[:, :0]  # the image Transformer has added their embeddings
        images: torch.Tensor = self.region_embedding(features, batch.region_boxes, tags)
        return images

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """(module, parameter) where a module uses a parameter that another module owns, to be registered with ZeRO-3."""
        word_weight = self.text_embedding.get_parameter("word.weight")
        return [(self.language_head, word_weight)]


def options_of(config: RunConfig) -> dict[str, Any]:
    """`Unimo`'s keyword arguments, from a run's settings."""
    return {
        "temperature": config.contrast.temperature,
        "min_temperature": config.contrast.min_temperature,
        "max_temperature": config.contrast.max_temperature,
        "attention": config.engine.attention,
        "activation_checkpointing": config.engine.activation_checkpointing,
        "seed": config.seed,
    }


def layout_of(batch: PackedBatch) -> Layout:
    """The batch's stream without its content."""
    return Layout(
        sequence_starts=batch.sequence_starts,
        prefix_lengths=batch.prefix_lengths,
        position_sequence=batch.position_sequence,
        position_keys=batch.position_keys,
        longest=batch.longest,
        prefix_of=batch.prefix_of if batch.shares_prefixes else None,
    )
