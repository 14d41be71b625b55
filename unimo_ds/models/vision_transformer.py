"""Image layers that begin as a Vision Transformer: weights of a local Hugging Face folder, put under this model's names.

Patches come here as pixels in [-1, 1], channels last (`data/patches.py`); another mean and deviation, with which the folder was
trained, are folded into the projection. The vector in place of [IMG] is the class token with its position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from unimo_ds.config import ModelConfig
from unimo_ds.models.image_transformer import ImageTransformer
from unimo_ds.models.roberta import read_weights
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


@dataclass(frozen=True)
class _Folder:
    path: Path
    tensors: Mapping[str, torch.Tensor]

    def get(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise UserError(f"{self.path}: tensor {name!r} is missing")
        return self.tensors[name]


def load_vision_transformer(model: Unimo, folder: str | Path) -> None:
    """Fill the image Transformer of `model` in place.

    folder: config.json, model.safetensors and perhaps preprocessor_config.json of a `vit`, as transformers saves it.
    Positions of another number of patches are interpolated (bicubic), as usual.

    Raises:
        UserError: a model without image layers; no such folder, another type of model, other sizes, weights as a pickle, a tensor
            that is missing or misshapen.
    """
    path = Path(folder)
    transformer = model.image_transformer
    if transformer is None:
        raise UserError("model.initialize_images_from needs image layers; set model.num_image_layers, or it to none")
    _check_sizes(model.config, path)
    source = _Folder(path, read_weights(path, prefix="vit."))
    target = dict(transformer.named_parameters())
    for name, value in _renamed(source, transformer, model.config):
        if value.shape != target[name].shape:
            raise UserError(
                f"{path}: the tensor for image_transformer.{name} has shape {tuple(value.shape)}, the model wants "
                f"{tuple(target[name].shape)}"
            )
        with torch.no_grad():
            target[name].copy_(value)


def _check_sizes(config: ModelConfig, folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.json; put a Vision Transformer there as transformers saves it, or set "
            "model.initialize_images_from=none to start from scratch"
        )
    found: dict[str, Any] = strict_json.read(path, dict[str, Any])
    if found.get("model_type") != "vit":
        raise UserError(
            f"{folder} holds a model of type {found.get('model_type')!r}; model.initialize_images_from takes 'vit'"
        )
    for key, field in _SIZES.items():
        if key in found and found[key] != getattr(config, field):
            raise UserError(
                f"{folder} has {key}={found[key]}, but model.{field}={getattr(config, field)}; set model.{field}={found[key]}"
            )
    if found.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder} has hidden_act={found['hidden_act']!r}; this model computes the exact gelu")


def _renamed(source: _Folder, transformer: ImageTransformer, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """(name within the image Transformer, value) of everything that the folder provides."""
    yield from _projection(source, transformer)
    positions_PD = source.get("embeddings.position_embeddings")[0]
    yield "image.weight", source.get("embeddings.cls_token")[0] + positions_PD[:1]
    table = transformer.tags[0].get_parameter("weight").detach().clone()
    table[:-1] = _resized(positions_PD[1:], config.region_tag_sizes[0], source.path)
    yield "tags.0.weight", table
    for number in range(config.num_image_layers):
        ours, theirs = f"layers.{number}", f"encoder.layer.{number}"
        for last in ("weight", "bias"):
            parts = [source.get(f"{theirs}.attention.attention.{part}.{last}") for part in ("query", "key", "value")]
            yield f"{ours}.attention.query_key_value.{last}", torch.cat(parts)
            for here, there in _INSIDE_LAYERS.items():
                yield f"{ours}.{here}.{last}", source.get(f"{theirs}.{there}.{last}")
    for last in ("weight", "bias"):
        yield f"norm.{last}", source.get(f"layernorm.{last}")


def _projection(source: _Folder, transformer: ImageTransformer) -> Iterator[tuple[str, torch.Tensor]]:
    """Of pixels 2 x - 1 where the folder's are (x - mean) / deviation."""
    weight_DCHW = source.get("embeddings.patch_embeddings.projection.weight")
    bias_D = source.get("embeddings.patch_embeddings.projection.bias")
    if weight_DCHW.dim() != 4 or weight_DCHW[0].numel() != transformer.patch.in_features:
        raise UserError(
            f"{source.path} projects patches of {tuple(weight_DCHW.shape[1:])}, the data have patches of "
            f"{transformer.patch.in_features} numbers; import with --patch-side {weight_DCHW.shape[-1]}"
        )
    mean, deviation = _normalisation(source.path)
    scaled = weight_DCHW / deviation[:, None, None]
    yield "patch.weight", (scaled / 2).permute(0, 2, 3, 1).flatten(1)
    yield "patch.bias", bias_D + (scaled.sum((2, 3)) @ (0.5 - mean))


@dataclass(frozen=True)
class _Preprocessor:
    image_mean: list[float]
    image_std: list[float]


def _normalisation(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[3] mean and deviation of pixels in [0, 1] that the folder was trained with."""
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


def _resized(positions_PD: torch.Tensor, number: int, folder: Path) -> torch.Tensor:
    """[number, D] positions of a square of patches, from those of another."""
    if len(positions_PD) == number:
        return positions_PD
    old, new = math.isqrt(len(positions_PD)), math.isqrt(number)
    if old * old != len(positions_PD) or new * new != number:
        raise UserError(
            f"{folder} has positions of {len(positions_PD)} patches, the data have {number}; only squares are interpolated"
        )
    square = positions_PD.T.reshape(1, -1, old, old)
    resized = functional.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T
