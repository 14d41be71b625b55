"""Weights in a folder written by transformers, and a check that they have the wanted sizes. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from unimo_ds.config import ModelConfig
from unimo_ds.models.split_weights import split_files
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError


def check_config(
    config: ModelConfig, folder: Path, *, setting: str, model_type: str, sizes: Mapping[str, str], others: str = ""
) -> None:
    """Refuse a folder whose config.json describes another model.

    setting: key that named the folder. sizes: key of config.json -> field of ModelConfig. others: further types that the
    setting accepts, for the message.

    Raises:
        UserError: with the key, the folder's value and the model's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.json; put a model of type {model_type!r} there as transformers saves it, or set {setting} "
            "to another folder, or to none to start from scratch"
        )
    found: dict[str, Any] = strict_json.read(path, dict[str, Any])
    if found.get("model_type") != model_type:
        raise UserError(
            f"{folder} holds a model of type {found.get('model_type')!r}; {setting} takes {model_type!r}{others}"
        )
    for key, field in sizes.items():
        wanted = getattr(config, field)
        if key in found and found[key] != wanted:
            raise UserError(
                f"{folder} has {key}={found[key]}, but model.{field}={wanted}; set model.{field}={found[key]}"
            )
    if found.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{folder} has hidden_act={found['hidden_act']!r}; this model computes the exact gelu")


class Weights:
    """All tensors of a folder by name, without the prefix added by models with a head."""

    def __init__(self, folder: Path, *, prefix: str) -> None:
        """
        Raises:
            UserError: weights as a pickle, none at all, or damaged.
        """
        self.folder = folder
        self.tensors: dict[str, torch.Tensor] = {}
        for file in weight_files(folder):
            try:
                found = load_file(file)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} cannot be read: {error}") from None
            self.tensors.update({name.removeprefix(prefix): value for name, value in found.items()})

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        """
        Raises:
            UserError: it is missing.
        """
        if name not in self.tensors:
            raise UserError(f"{self.folder}: tensor {name!r} is missing")
        return self.tensors[name]

    def layer(self, here: str, *there: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(name here, value) of a layer's weight and bias, concatenated from the layers `there`."""
        for last in ("weight", "bias"):
            yield f"{here}.{last}", torch.cat([self[f"{name}.{last}"] for name in there])

    @torch.no_grad()
    def fill(self, module: nn.Module, values: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Copy each value to the parameter of `module` with its name. Returns the names.

        Raises:
            UserError: a tensor of another shape.
        """
        target = dict(module.named_parameters())
        filled = set()
        for name, value in values:
            if value.shape != target[name].shape:
                raise UserError(
                    f"{self.folder}: the tensor for {name} has shape {tuple(value.shape)}, the model wants "
                    f"{tuple(target[name].shape)}; set the model's sizes to the folder's"
                )
            target[name].copy_(value)
            filled.add(name)
        return filled


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's tensors.

    Raises:
        UserError: weights as a pickle, or none at all.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return split_files(index)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / "pytorch_model.bin").is_file():
        raise UserError(
            f"{folder} holds its weights as a pickle (pytorch_model.bin), which can run code when read; write "
            "model.safetensors with transformers' save_pretrained(..., safe_serialization=True) where you trust the file"
        )
    raise UserError(f"{folder} has no model.safetensors")
