"""Weights that a pre-training begins with: RoBERTa's, or another UNIMO's (an export, or an import of the official release)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unimo_ds.models.roberta import load_roberta, read_weights
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError


def load_start(model: Unimo, folder: str | Path) -> list[str]:
    """Fill `model` in place from a folder of transformers. Returns the names of the parameters that keep their fresh values.

    Raises:
        UserError: no such folder, a model of another type or other sizes, a pickle, or a damaged file.
    """
    path = Path(folder) / "config.json"
    kind = strict_json.read(path, dict[str, Any]).get("model_type") if path.is_file() else None
    return _load_unimo(model, Path(folder)) if kind == "unimo" else load_roberta(model, folder)


def _load_unimo(model: Unimo, folder: Path) -> list[str]:
    """Everything but heads of tasks."""
    source = read_weights(folder, prefix="unimo.")
    remaining = []
    for name, parameter in model.named_parameters():
        if name not in source:
            remaining.append(name)
            continue
        if source[name].shape != parameter.shape:
            raise UserError(
                f"{folder}: {name} has shape {tuple(source[name].shape)}, the model wants {tuple(parameter.shape)}; "
                "set the model's sizes to the folder's"
            )
        with torch.no_grad():
            parameter.copy_(source[name])
    if not len(source) or len(remaining) == len(list(model.named_parameters())):
        raise UserError(f"{folder} holds none of the model's parameters")
    return sorted(remaining)
