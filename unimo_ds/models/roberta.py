"""Start from RoBERTa (paper section 3): weights from a local Hugging Face folder, under this model's names.

RoBERTa adds its one segment vector to the embedding sum at each position; here it is folded into the position table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from unimo_ds.config import ModelConfig
from unimo_ds.models.transformers_folder import Weights, check_config
from unimo_ds.models.unimo import Unimo

SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_size",
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "max_positions",
    "layer_norm_eps": "layer_norm_epsilon",
}
"""Key of Hugging Face's config.json -> field of ModelConfig."""

_OUTSIDE_LAYERS = {
    "text_embedding.word.weight": "embeddings.word_embeddings.weight",
    "text_embedding.norm": "embeddings.LayerNorm",
    "language_head.transform": "lm_head.dense",
    "language_head.norm": "lm_head.layer_norm",
    "language_head.bias": "lm_head.bias",
}
_INSIDE_LAYERS = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_in": "intermediate.dense",
    "feed_forward_out": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def load_roberta(model: Unimo, folder: str | Path) -> list[str]:
    """Fill the text side, the layers and the language head of `model` in place.

    folder: config.json and model.safetensors (or its shards and index), as `save_pretrained` writes them.
    Returns the names of the parameters that keep their fresh values: image inputs, region heads, poolers, temperature, and
    the language head if the folder has none.

    Raises:
        UserError: no such folder, weights as a pickle, sizes other than the model's, a missing or misshapen tensor.
    """
    path = Path(folder)
    check_roberta(model.config, path)
    weights = Weights(path, prefix="roberta.")
    filled = weights.fill(model, _renamed(weights, model.config.num_layers))
    return sorted({name for name, _ in model.named_parameters()} - filled)


def check_roberta(config: ModelConfig, folder: Path) -> None:
    """Refuse a folder with another model, by its config.json.

    Raises:
        UserError: with the folder's value and the model's.
    """
    check_config(
        config, folder, setting="model.initialize_from", model_type="roberta", sizes=SIZES, others=" and 'unimo'"
    )


def _renamed(source: Weights, num_layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(name here, value) of all parameters that the folder provides."""

    for here, there in _OUTSIDE_LAYERS.items():
        if there.startswith("lm_head.") and "lm_head.dense.weight" not in source:
            continue
        if here.endswith((".weight", ".bias")):
            yield here, source[there]
        else:
            yield from source.layer(here, there)
    positions = source["embeddings.position_embeddings.weight"]
    yield "text_embedding.position.weight", positions + source["embeddings.token_type_embeddings.weight"][0]
    for number in range(num_layers):
        ours, theirs = f"layers.{number}", f"encoder.layer.{number}"
        parts = (f"{theirs}.attention.self.{part}" for part in ("query", "key", "value"))
        yield from source.layer(f"{ours}.attention.query_key_value", *parts)
        for here, there in _INSIDE_LAYERS.items():
            yield from source.layer(f"{ours}.{here}", f"{theirs}.{there}")
