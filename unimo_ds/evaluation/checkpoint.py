"""Loads a trained model without the trainer: from a run directory, one of its checkpoints, or an exported folder; no pickle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch

from unimo_ds.config import RunConfig, from_dict, to_dict
from unimo_ds.config_check import check_stored
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.vision import resolution
from unimo_ds.engine import checkpoint_folder
from unimo_ds.evaluation.encode import OneDevice
from unimo_ds.models.accounting import count_parameters
from unimo_ds.models.positions import at_resolution
from unimo_ds.models.split_weights import split_files
from unimo_ds.models.unimo import OBJECTIVE_HEADS, ModelOutput, Unimo, options_of
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

WEIGHTS_FILE = checkpoint_folder.FILES[checkpoint_folder.WEIGHT]
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
"""Lists the files of split weights, as in transformers."""
CONFIG_FILE = "config.json"
"""A run's configuration; in an export, that of transformers."""
RUN_CONFIG_FILE = "run_config.json"
"""The run's configuration in an export."""
PREFIX = "unimo."
"""Prefix of a model's weight names in transformers' classes."""

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True)
class CheckpointFiles:
    """Paths of a model's weights and configuration."""

    weights: Path
    """`model.safetensors`, or the index of several such files."""
    config: Path

    @property
    def name(self) -> str:
        """`step-N` for a run's checkpoint, the folder's name otherwise."""
        return self.weights.parent.name


@dataclass(frozen=True)
class LoadedModel(OneDevice[ModelOutput]):
    """A model ready to be evaluated."""

    module: Unimo
    config: RunConfig
    files: CheckpointFiles


def find(path: str | os.PathLike[str]) -> CheckpointFiles:
    """The newest checkpoint of a run directory, or the model in a checkpoint folder or an exported folder.

    `RUN/checkpoints/best` and `RUN/checkpoints/latest` each name a checkpoint in the same folder. A folder of `unimo finetune`
    with a single seed stands for that seed's best checkpoint.

    Raises:
        UserError: nothing there, or no complete checkpoint yet.
    """
    folder = Path(path)
    if folder.is_file() and folder.name in checkpoint_folder.POINTERS:
        name = checkpoint_folder.named(folder)
        if not name:
            raise UserError(f"{folder} does not name a checkpoint; give one of those beside it")
        folder = folder.parent / name
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give a run directory, one of its checkpoints, or an exported folder")
    for weights in (folder / INDEX_FILE, folder / WEIGHTS_FILE):
        if not weights.is_file():
            continue
        for config in (folder / RUN_CONFIG_FILE, folder / CONFIG_FILE, folder.parent.parent / CONFIG_FILE):
            if config.is_file():
                return CheckpointFiles(weights, config)
        raise UserError(f"{folder} has {weights.name} but no {CONFIG_FILE}; give the run directory it belongs to")
    if not (folder / CONFIG_FILE).is_file():
        return find(_of_single_seed(folder))
    chosen = _latest(folder)
    if chosen is None:
        raise UserError(
            f"{folder} holds neither {WEIGHTS_FILE} nor a finished checkpoint yet; a run saves its first after "
            "checkpoint.every_steps"
        )
    return CheckpointFiles(chosen / WEIGHTS_FILE, folder / CONFIG_FILE)


def _of_single_seed(folder: Path) -> Path:
    """The best checkpoint, or else the run, of the only seed that was fine-tuned in `folder`."""
    seeds = sorted(file.parent for file in folder.glob(f"seed-*/{CONFIG_FILE}"))
    if not seeds:
        raise UserError(f"{folder} is not a run, a checkpoint or an exported model: it has no {CONFIG_FILE}")
    best = [seed / checkpoint_folder.FOLDER / checkpoint_folder.BEST for seed in seeds]
    if len(seeds) > 1:
        raise UserError(f"{folder} holds {len(seeds)} fine-tuned seeds; give one of them, such as {best[0]}")
    return best[0] if best[0].is_file() else seeds[0]


def _latest(run_dir: Path) -> Path | None:
    """The checkpoint that `latest` names, or the newest complete one if `latest` is missing or names none."""
    checkpoints = run_dir / checkpoint_folder.FOLDER
    latest = checkpoint_folder.named(checkpoints / checkpoint_folder.LATEST)
    if latest and (checkpoints / latest / WEIGHTS_FILE).is_file():
        return checkpoints / latest
    steps = checkpoint_folder.completed_steps(run_dir)
    return checkpoints / checkpoint_folder.name_of(steps[-1]) if steps else None


def read_config(path: Path) -> RunConfig:
    """The configuration that a run, an export or transformers' `save_pretrained` wrote.

    How the trainer computed is not taken over: here the model may be on another device and is in float32, which the path
    that `engine.attention` names need not take.

    Raises:
        UserError: not readable, not JSON, keys of another version, or another kind of model.
    """
    values = strict_json.read(path, dict[str, Any])
    config = (
        _from_transformers(values, path) if "model_type" in values else from_dict(RunConfig, values, where=str(path))
    )
    try:
        check_stored(config)
    except UserError as error:
        raise UserError(f"{path}: {error}; restore it") from None
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, attention="auto", contrastive="auto"))


def _from_transformers(values: dict[str, Any], path: Path) -> RunConfig:
    if values["model_type"] != "unimo":
        raise UserError(
            f"{path.parent} holds a model of type {values['model_type']!r}, not a UNIMO; a RoBERTa is a start for training "
            "(model.initialize_from, or `unimo finetune --checkpoint`), nothing more"
        )
    from huggingface_hub.errors import StrictDataclassError

    from unimo_ds.huggingface.configuration import UnimoConfig

    try:
        found = UnimoConfig.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); restore it") from None
    contrast = {
        "temperature": found.contrastive_temperature,
        "min_temperature": found.min_contrastive_temperature,
        "max_temperature": found.max_contrastive_temperature,
    }
    # transformers accepts null for any key; this does not.
    sizes = {"recipe": "transformers", "model": to_dict(found.sizes()), "contrast": contrast}
    return from_dict(RunConfig, sizes, where=str(path))


def load(
    path: str | os.PathLike[str], *, device: torch.device | None = None, images: Corpus | None = None
) -> LoadedModel:
    """The model at `path` (see `find`), in float32 and evaluation mode.

    images: data that it will read; a model that reads patches is adapted to their resolution (`data/vision/resolution.py`).

    Raises:
        UserError: as `find` and `read_config`; weights that are damaged or of another model.
    """
    files = find(path)
    config = read_config(files.config)
    weights = weights_of(files, config)
    if any(name.startswith("head.") for name in weights):
        raise UserError(f"{files.weights.parent} is a fine-tuned model, with a task's head; give the pre-trained one")
    if images is not None:
        trained, config = config, resolution.fitted(config, images)
        weights = at_resolution(weights, trained.model, config.model, where=str(files.weights))
    model = made_with(weights, lambda: Unimo(config.model, **options_of(config)), files)
    return LoadedModel(*on_device(model, device), config, files)


def made_with(weights: Mapping[str, torch.Tensor], make: Callable[[], Module], files: CheckpointFiles) -> Module:
    """A model with weights instead of initial ones, which take seconds to draw for a large model.

    make: the model; all its tensors are parameters. files: for messages.

    Raises:
        UserError: names or shapes differ.
    """
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    fill(dict(model.named_parameters()), weights, where=f"{files.weights} does not fit the model of {files.config}")
    return model


def on_device(model: Module, device: torch.device | None) -> tuple[Module, torch.device]:
    """The model in evaluation mode, and its device. device: None: a GPU if there is one."""
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(chosen).eval(), chosen


def fill(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy weights into the parameters of a model, in place.

    where: start of error messages.

    Raises:
        UserError: names or shapes differ.
    """
    for name in sorted(own.keys() | weights.keys()):
        here, there = (tuple(named[name].shape) if name in named else "absent" for named in (own, weights))
        if here != there:
            raise UserError(f"{where}: {name!r} is {there} in the file and {here} in the model")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def weights_of(files: CheckpointFiles, config: RunConfig) -> Mapping[str, torch.Tensor]:
    """The weights of a checkpoint. Their number is checked before a model is made: a changed configuration may describe one that
    needs more memory than there is.

    Raises:
        UserError: as `read_weights`, or the configured model is more than twice as large.
    """
    weights = read_weights(files.weights)
    held, wanted = sum(weight.numel() for weight in weights.values()), count_parameters(config.model).total
    if wanted > 2 * held:
        raise UserError(
            f"{files.weights} does not fit the model of {files.config}: it holds {held:,} numbers, the model has {wanted:,}"
        )
    return weights


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a safetensors file, or of all files that an index names; checked against the checkpoint's manifest if
    one is in the same folder, named as in `Unimo`, and without the own heads of pre-training objectives.

    Raises:
        UserError: damaged or unreadable.
    """
    cure = "take another checkpoint"
    manifest = path.parent / checkpoint_folder.MANIFEST
    weights: dict[str, torch.Tensor] = {}
    try:
        if manifest.is_file():
            listed = checkpoint_folder.read_manifest(path.parent).files
            if path.name not in listed or checkpoint_folder.has_changed(path, listed[path.name].sha256):
                raise UserError(f"{path} has changed since it was written (SHA-256 differs); {cure}")
        for file in split_files(path) if path.name == INDEX_FILE else [path]:
            weights |= safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read the weights {path}: {error}; {cure}") from None
    named = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    return {name: weight for name, weight in named.items() if not name.startswith(OBJECTIVE_HEADS)}
