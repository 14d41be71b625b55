"""What a fine-tuning starts from. The kinds of checkpoints and their names:

pre-trained   a run, one of its checkpoints or an export whose configuration has no `finetune`
fine-tuned    the same with `finetune`; its weights are a pre-trained model's and `head.*`
RoBERTa       a Hugging Face folder (text tasks, or fine-tuning from where pre-training starts)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimo_ds.config import ModelConfig, RunConfig, from_dict
from unimo_ds.config_check import check_stored
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation import checkpoint
from unimo_ds.evaluation.checkpoint import CheckpointFiles
from unimo_ds.evaluation.own_tokenizer import tokenizer_of
from unimo_ds.finetune.model import HEAD_PREFIX, TaskModel
from unimo_ds.models.positions import at_resolution
from unimo_ds.models.roberta import SIZES, load_roberta
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

START_FILE = "start.json"
"""Records the weights that all seeds of a fine-tuning start with."""


@dataclass(frozen=True)
class Start:
    """The starting point of a fine-tuning."""

    path: Path
    config: RunConfig
    """Source of the model sizes and of the contrastive temperature's limits."""
    tokenizer: Tokenizer
    weights: Mapping[str, torch.Tensor]
    """Without heads."""
    folder: Path
    """The folder of the weights; for a run, its newest checkpoint."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the weights."""
        digest = hashlib.blake2b(digest_size=8)
        for name, weight in sorted(self.weights.items()):
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            digest.update(weight.detach().float().contiguous().numpy().data)
        return digest.hexdigest()


def read_start(path: Path, *, tokenizer: Path | None = None) -> Start:
    """The model at `path`, of any kind; a fine-tuned one without its head.

    tokenizer: file or folder; None: the model's own.

    Raises:
        UserError: nothing there, damaged, or no matching tokenizer.
    """
    config_file = path / checkpoint.CONFIG_FILE
    if config_file.is_file() and strict_json.read(config_file, dict[str, Any]).get("model_type") == "roberta":
        return _read_roberta(path, tokenizer)
    files = checkpoint.find(path)
    config = checkpoint.read_config(files.config)
    weights = checkpoint.weights_of(files, config)
    body = {name: weight.float() for name, weight in weights.items() if not name.startswith(HEAD_PREFIX)}
    return Start(path, config, tokenizer_of(files, config, tokenizer), body, files.weights.parent)


def check_start(run_dir: Path, start: Start | None, *, is_done: bool) -> None:
    """All seeds must start with the same weights, although the run that is fine-tuned may train on in the meantime.

    start: None if they start from scratch. is_done: the result is only read; weights recorded anywhere under `start` will do.

    Raises:
        UserError: the seeds in `run_dir` started differently.
    """
    begun = _begun(run_dir)
    if begun is None:
        return
    folder = begun["folder"]
    if "fingerprint" in begun:
        is_same = begun["fingerprint"] == _record(start)["fingerprint"]
    else:
        is_same = folder == ("" if start is None else str(start.path))
    if is_done and folder and start is not None:
        is_same |= Path(folder).resolve().is_relative_to(start.path.resolve())
    if not is_same:
        option = f"--checkpoint {folder}" if folder else "--from-scratch"
        now = "from scratch" if start is None else f"with what {start.path} holds now"
        raise UserError(
            f"{run_dir} was begun with {option}, which is not the same as {now}; give {option}, or another --run-dir"
        )


def keep_start(run_dir: Path, start: Start | None) -> None:
    """Record what the first seed starts with, for `check_start`. Raises UserError: not writable."""
    path = run_dir / START_FILE
    if not path.is_file():
        write_whole(path, (json.dumps(_record(start)) + "\n").encode())


def _record(start: Start | None) -> dict[str, str]:
    if start is None:
        return {"folder": "", "fingerprint": ""}
    return {"folder": str(start.folder), "fingerprint": start.fingerprint}


def _begun(run_dir: Path) -> dict[str, str] | None:
    """The record; for a directory older than such records, the path that was given for its seeds. None: there is nothing."""
    if (run_dir / START_FILE).is_file():
        known: dict[str, str] = strict_json.read(run_dir / START_FILE, dict[str, str])
        return {"folder": "", "fingerprint": "", **known}
    for file in sorted(run_dir.glob(f"seed-*/{checkpoint.CONFIG_FILE}")):
        if (finetuning := checkpoint.read_config(file).finetune) is not None:
            return {"folder": finetuning.start}
    return None


def fill(model: TaskModel, start: Start) -> None:
    """Put the starting weights into a model, in place; its head keeps the fresh ones. Positions of another grid of patches are
    interpolated.

    Raises:
        UserError: weights of another model.
    """
    own = {name: value for name, value in model.named_parameters() if not name.startswith(HEAD_PREFIX)}
    weights = at_resolution(start.weights, start.config.model, model.config, where=str(start.path))
    checkpoint.fill(own, weights, where=f"{start.path} does not fit its own configuration")


def is_finetuned(path: Path) -> bool:
    """Whether the checkpoint at `path` is a fine-tuned one.

    Raises:
        UserError: as `checkpoint.find` and `read_config`.
    """
    return checkpoint.read_config(checkpoint.find(path).config).finetune is not None


def _read_roberta(path: Path, tokenizer: Path | None) -> Start:
    file = path / checkpoint.CONFIG_FILE
    found = strict_json.read(file, dict[str, Any])
    sizes = {field: found[key] for key, field in SIZES.items() if key in found}
    model_config = from_dict(ModelConfig, sizes, where=str(file))
    check_stored(RunConfig(recipe="roberta", model=model_config))
    model = Unimo(model_config)
    load_roberta(model, path)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    config = RunConfig(recipe="roberta", model=dataclasses.replace(model_config, initialize_from=str(path)))
    if tokenizer is None:
        return Start(path, config, tokenizers.load(path), weights, path)
    given = tokenizer_of(CheckpointFiles(path / checkpoint.WEIGHTS_FILE, file), config, tokenizer)
    return Start(path, config, given, weights, path)
