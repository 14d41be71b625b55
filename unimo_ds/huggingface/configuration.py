"""Sizes of a model in transformers' terms, and back."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from unimo_ds import huggingface
from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import CLS, PAD, SEP

_NAMES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_image_layers": "num_image_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_size",
    "max_position_embeddings": "max_positions",
    "region_feature_size": "region_feature_size",
    "patch_columns": "patch_columns",
    "num_region_classes": "num_region_classes",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
"""Field here -> field of ModelConfig."""


@strict
class UnimoConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of every UNIMO class. Making one registers the models with the Auto classes."""

    model_type = "unimo"

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_image_layers: int = 0
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    region_feature_size: int = 2048
    num_region_classes: int = 1601
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    region_tag_sizes: list[int] | None = None
    """Number of values of each region tag, if the extractor makes tags (`region_tags`)."""
    patch_columns: int = 0
    """Patches per image row, if image layers read patches; 0: as many as per column."""
    classifier_dropout: float | int = 0.1
    classifier_hidden_size: int = 2048
    """Of the visual entailment head."""
    tag_sizes: list[int] | None = None
    """For the conditional generation class: values of each further embedding of source tokens (CoQA: roles and turns)."""
    gnmt_length_penalty: bool = False
    """For the same class: `length_penalty` is the exponent of (5 + t) / 6, as in the released UNIMO, not of t."""
    contrastive_temperature: float = 0.07
    min_contrastive_temperature: float = 0.001
    max_contrastive_temperature: float = 0.5
    bos_token_id: int | None = CLS
    cls_token_id: int | None = CLS
    pad_token_id: int | None = PAD
    eos_token_id: int | list[int] | None = SEP
    sep_token_id: int | None = SEP
    decoder_start_token_id: int | None = CLS
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # By now every transformers module that the classes need can be imported; while its registry was, not all could.
        huggingface.register("register_models")

    @classmethod
    def of(cls, model: ModelConfig, **others: Any) -> UnimoConfig:
        """The configuration of a `ModelConfig`."""
        sizes: dict[str, Any] = {here: getattr(model, there) for here, there in _NAMES.items()}
        return cls(**sizes, region_tag_sizes=list(model.region_tag_sizes) or None, **others)

    def sizes(self) -> ModelConfig:
        """The `ModelConfig` of these sizes."""
        sizes: dict[str, Any] = {there: getattr(self, here) for here, there in _NAMES.items()}
        return ModelConfig(**sizes, region_tag_sizes=tuple(self.region_tag_sizes or ()))
