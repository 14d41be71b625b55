"""Start from RoBERTa (paper section 3): weights of a local Hugging Face folder, put under this model's names.

RoBERTa's one segment vector is added to every position of its embedding sum, so it is folded into the position table here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unimo_ds.config import ModelConfig
from unimo_ds.models.split_weights import split_files
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

_SIZES = {
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
    the language head where the folder has none.

    Raises:
        UserError: no such folder, weights as a pickle, sizes other than the model's, a tensor that is missing or misshapen.
    """
    folder = Path(folder)
    check_sizes(model.config, folder)
    source = read_weights(folder, prefix="roberta.")
    target = dict(model.named_parameters())
    remaining = set(target)
    for name, value in _renamed(source, model.config.num_layers, folder):
        if value.shape != target[name].shape:
            raise UserError(
                f"{folder}: the tensor for {name} has shape {tuple(value.shape)}, the model wants {tuple(target[name].shape)}"
            )
        with torch.no_grad():
            target[name].copy_(value)
        remaining.remove(name)
    return sorted(remaining)


def check_sizes(config: ModelConfig, folder: Path) -> None:
    """Refuse a folder whose config.json names another model.

    Raises:
        UserError: naming the key, what the folder has and what the model has.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.json; put RoBERTa there as transformers saves it, or set model.initialize_from to another "
            "folder, or to none to start from scratch"
        )
    found: dict[str, Any] = strict_json.read(path, dict[str, Any])
    if found.get("model_type") != "roberta":
        raise UserError(
            f"{folder} holds a model of type {found.get('model_type')!r}; model.initialize_from takes 'roberta' and 'unimo'"
        )
    for key, field in _SIZES.items():
        wanted = getattr(config, field)
        if key in found and found[key] != wanted:
            raise UserError(
                f"{folder} has {key}={found[key]}, but model.{field}={wanted}; set model.{field}={found[key]}"
            )
    if found.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder} has hidden_act={found['hidden_act']!r}; this model computes the exact gelu")


def read_weights(folder: Path, *, prefix: str) -> Mapping[str, torch.Tensor]:
    """All tensors of the folder by name, without the prefix that models with a head put in front.

    Raises:
        UserError: weights as a pickle, none at all, or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = split_files(index)
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif (folder / "pytorch_model.bin").is_file():
        raise UserError(
            f"{folder} holds its weights as a pickle (pytorch_model.bin), which can run code when read; write "
            "model.safetensors with transformers' save_pretrained(..., safe_serialization=True) where you trust the file"
        )
    else:
        raise UserError(f"{folder} has no model.safetensors")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _renamed(source: Mapping[str, torch.Tensor], num_layers: int, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name here, value) of everything that the folder provides."""

    def get(name: str) -> torch.Tensor:
        if name not in source:
            raise UserError(f"{folder}: tensor {name!r} is missing")
        return source[name]

    def pair(here: str, there: str) -> Iterator[tuple[str, torch.Tensor]]:
        """A layer's weight and bias, or the one tensor that `here` names in full."""
        if here.endswith((".weight", ".bias")):
            yield here, get(there)
            return
        for last in ("weight", "bias"):
            yield f"{here}.{last}", get(f"{there}.{last}")

    for here, there in _OUTSIDE_LAYERS.items():
        if there.startswith("lm_head.") and "lm_head.dense.weight" not in source:
            continue
        yield from pair(here, there)
    positions = get("embeddings.position_embeddings.weight")
    yield "text_embedding.position.weight", positions + get("embeddings.token_type_embeddings.weight")[0]
    for number in range(num_layers):
        ours, theirs = f"layers.{number}", f"encoder.layer.{number}"
        for last in ("weight", "bias"):
            parts = [get(f"{theirs}.attention.self.{part}.{last}") for part in ("query", "key", "value")]
            yield f"{ours}.attention.query_key_value.{last}", torch.cat(parts)
        for here, there in _INSIDE_LAYERS.items():
            yield from pair(f"{ours}.{here}", f"{theirs}.{there}")
