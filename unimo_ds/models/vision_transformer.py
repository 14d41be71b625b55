"""Image layers that start as a Vision Transformer: weights from a local Hugging Face folder, under this model's names.

Patches here are pixels in [-1, 1], channels last (`data/vision/patches.py`); if the folder's model was trained with another
mean and deviation, these are folded into the projection. The vector for [IMG] is the class token with its position.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimo_ds.config import ModelConfig
from unimo_ds.models.image_transformer import ImageTransformer
from unimo_ds.models.positions import resized
from unimo_ds.models.transformers_folder import Weights, check_config
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

_SIZES = {
    "num_hidden_layers": "num_image_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_size",
}
"""Key of Hugging Face's config.json -> field of ModelConfig."""
_INSIDE_LAYERS = {
    "attention_norm": "layernorm_before",
    "attention.output": "attention.output.dense",
    "feed_forward_norm": "layernorm_after",
    "feed_forward_in": "intermediate.dense",
    "feed_forward_out": "output.dense",
}


def load_vision_transformer(model: Unimo, folder: str | Path) -> None:
    """Fill the image Transformer of `model` in place.

    folder: config.json, model.safetensors and optionally preprocessor_config.json of a `vit`, as saved by transformers.
    Positions of another patch grid are interpolated (`positions.py`).

    Raises:
        UserError: a model without image layers; no such folder, another type of model, other sizes, weights as a pickle, a
            missing or misshapen tensor.
    """
    path, transformer = Path(folder), model.image_transformer
    check_vision_transformer(model.config, path)
    assert transformer is not None, "image layers"
    weights = Weights(path, prefix="vit.")
    weights.fill(transformer, _renamed(weights, transformer, model.config))


def check_vision_transformer(config: ModelConfig, folder: Path) -> None:
    """Refuse a folder with another model, by its config.json, and a model without image layers.

    Raises:
        UserError: with the folder's value and the model's.
    """
    if not config.num_image_layers:
        raise UserError("model.initialize_images_from needs image layers; set model.num_image_layers, or it to none")
    check_config(config, folder, setting="model.initialize_images_from", model_type="vit", sizes=_SIZES)


def trained_grid(config: ModelConfig, folder: Path) -> ModelConfig:
    """`config` with the patch grid that the folder was trained with, if config.json has it."""
    found = strict_json.read(folder / "config.json", dict[str, Any])
    image, patch = found.get("image_size"), found.get("patch_size")
    if not isinstance(image, int) or not isinstance(patch, int) or not 0 < patch <= image:
        return config
    columns = image // patch
    return dataclasses.replace(config, region_tag_sizes=(columns**2,), patch_columns=columns)


def _renamed(source: Weights, transformer: ImageTransformer, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """(name within the image Transformer, value) of all parameters that the folder provides."""
    yield from _projection(source, transformer)
    positions_PD = source["embeddings.position_embeddings"][0]
    yield "image.weight", source["embeddings.cls_token"][0] + positions_PD[:1]
    table = transformer.tags[0].get_parameter("weight").detach().clone()
    table[:-1] = _resized(positions_PD[1:], config, source.folder)
    yield "tags.0.weight", table
    for number in range(config.num_image_layers):
        ours, theirs = f"layers.{number}", f"encoder.layer.{number}"
        parts = (f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value"))
        yield from source.layer(f"{ours}.attention.query_key_value", *parts)
        for here, there in _INSIDE_LAYERS.items():
            yield from source.layer(f"{ours}.{here}", f"{theirs}.{there}")
    yield from source.layer("norm", "layernorm")


def _projection(source: Weights, transformer: ImageTransformer) -> Iterator[tuple[str, torch.Tensor]]:
    """For pixels 2 x - 1; the folder's are (x - mean) / deviation."""
    weight_DCHW = source["embeddings.patch_embeddings.projection.weight"]
    bias_D = source["embeddings.patch_embeddings.projection.bias"]
    if weight_DCHW.dim() != 4 or weight_DCHW[0].numel() != transformer.patch.in_features:
        raise UserError(
            f"{source.folder} projects patches of {tuple(weight_DCHW.shape[1:])}, the data have patches of "
            f"{transformer.patch.in_features} numbers; import with --patch-side {weight_DCHW.shape[-1]}"
        )
    mean, deviation = _normalisation(source.folder)
    scaled = weight_DCHW / deviation[:, None, None]
    yield "patch.weight", (scaled / 2).permute(0, 2, 3, 1).flatten(1)
    yield "patch.bias", bias_D + (scaled.sum((2, 3)) @ (0.5 - mean))


@dataclass(frozen=True)
class _Preprocessor:
    image_mean: list[float]
    image_std: list[float]


def _normalisation(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[3] mean and deviation, for pixels in [0, 1], that the folder was trained with."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return torch.full((3,), 0.5), torch.full((3,), 0.5)
    found = strict_json.read(path, dict[str, Any])
    named = {name: found.get(name, [0.5, 0.5, 0.5]) for name in ("image_mean", "image_std")}
    settings: _Preprocessor = strict_json.typed(_Preprocessor, named, where=str(path))
    mean, deviation = torch.tensor(settings.image_mean), torch.tensor(settings.image_std)
    if len(mean) != 3 or len(deviation) != 3 or not bool((deviation > 0).all()):
        raise UserError(f"{path}: image_mean and image_std must be three numbers each, the latter positive")
    return mean, deviation


def _resized(positions_PD: torch.Tensor, config: ModelConfig, folder: Path) -> torch.Tensor:
    """Positions of a square of patches, interpolated to the model's patch grid."""
    number, old = len(positions_PD), math.isqrt(len(positions_PD))
    if old**2 == number and config.patch_grid is not None:
        return resized(positions_PD, (old, old), config.patch_grid)
    if number != config.num_patches:
        raise UserError(
            f"{folder} has positions of {number} patches, the data have {config.num_patches}; only squares are "
            "interpolated, and grids of model.patch_columns"
        )
    return positions_PD
