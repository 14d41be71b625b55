"""Initial weights of a pre-training: RoBERTa's, or another UNIMO's (an export, or an import of the official release)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimo_ds.config import ModelConfig, from_dict
from unimo_ds.models import positions
from unimo_ds.models.roberta import check_roberta, load_roberta
from unimo_ds.models.transformers_folder import Weights, weight_files
from unimo_ds.models.unimo import Unimo
from unimo_ds.models.vision_transformer import check_vision_transformer, trained_grid
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

_SIZES_OF_PATCHES = ("num_image_layers", "region_feature_size", "region_tag_sizes", "patch_columns")
"""Fields of ModelConfig with the same names in config.json."""


def load_initial_weights(model: Unimo, folder: str | Path) -> list[str]:
    """Fill `model` in place from a transformers folder. Returns the names of the parameters that keep their fresh values.
    Positions of another patch grid are interpolated (`positions.py`).

    Raises:
        UserError: no such folder, a model of another type or other sizes, a pickle, or a damaged file.
    """
    path = Path(folder) / "config.json"
    found = _read(path)
    if found.get("model_type") != "unimo":
        return load_roberta(model, folder)
    return _load_unimo(model, Path(folder), _sizes_of_patches(found, path))


def check_initial_weights(config: ModelConfig) -> None:
    """Refuse a model whose initial weights are missing or belong to another model, before anything is built. Cheap: reads only
    config.json in the folders that `config` names, no weights.

    Raises:
        UserError: no such folder, a model of another type or other sizes, a pickle or no weights.
    """
    if config.initialize_from is not None:
        folder = Path(config.initialize_from)
        if _read(folder / "config.json").get("model_type") != "unimo":
            check_roberta(config, folder)
        weight_files(folder)
    if config.initialize_images_from is not None:
        check_vision_transformer(config, Path(config.initialize_images_from))
        weight_files(Path(config.initialize_images_from))


def start_note(config: ModelConfig) -> str:
    """Note to the user on initial weights of another resolution; empty if there are none."""
    if config.initialize_images_from is not None:
        trained = trained_grid(config, Path(config.initialize_images_from))
    elif config.initialize_from is not None:
        path = Path(config.initialize_from) / "config.json"
        trained = _sizes_of_patches(_read(path), path)
    else:
        return ""
    return positions.note(trained, config)


def _sizes_of_patches(found: dict[str, Any], path: Path) -> ModelConfig:
    """found: content of the config.json at `path`."""
    sizes = {name: found[name] for name in _SIZES_OF_PATCHES if found.get(name) is not None}
    return from_dict(ModelConfig, sizes, where=str(path))


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = strict_json.read(path, dict[str, Any]) if path.is_file() else {}
    return found


def _load_unimo(model: Unimo, folder: Path, sizes: ModelConfig) -> list[str]:
    """All parameters except task heads."""
    source, names = Weights(folder, prefix="unimo."), [name for name, _ in model.named_parameters()]
    weights = positions.at_resolution(source.tensors, sizes, model.config, where=str(folder))
    filled = source.fill(model, [(name, weights[name]) for name in names if name in weights])
    if not filled:
        raise UserError(f"{folder} holds none of the model's parameters")
    return sorted(set(names) - filled)
