"""Weights that a pre-training begins with: RoBERTa's, or another UNIMO's (an export, or an import of the official release)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimo_ds.models.roberta import load_roberta
from unimo_ds.models.transformers_folder import Weights
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
    weights, names = Weights(folder, prefix="unimo."), [name for name, _ in model.named_parameters()]
    filled = weights.fill(model, [(name, weights[name]) for name in names if name in weights])
    if not filled:
        raise UserError(f"{folder} holds none of the model's parameters")
    return sorted(set(names) - filled)
