"""What a fine-tuning starts from, and a fine-tuned model found again: which kinds of checkpoints there are, told apart by name.

pre-trained   a run, one of its checkpoints or an export whose configuration has no `finetune`
fine-tuned    the same with `finetune`; its weights are a pre-trained model's and `head.*`
RoBERTa       a Hugging Face folder (text tasks, or fine-tuning from where pre-training starts)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unimo_ds.config import ModelConfig, RunConfig, from_dict
from unimo_ds.config_check import check_stored
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.schema import PackedBatch
from unimo_ds.data.storage import blend
from unimo_ds.data.tokenizer import TOKENIZER_FILE, Tokenizer
from unimo_ds.evaluation import checkpoint, run_paths
from unimo_ds.evaluation.checkpoint import CheckpointFiles
from unimo_ds.finetune import tasks
from unimo_ds.finetune.model import HEAD_PREFIX, TaskModel, TaskOutput
from unimo_ds.finetune.task import Task
from unimo_ds.models.positions import at_resolution
from unimo_ds.models.roberta import load_roberta
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils import locations, strict_json
from unimo_ds.utils.communicator import Communicator, SingleProcess
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

START_FILE = "start.json"
"""Which weights the seeds of a fine-tuning begin with."""
ASSETS_FILE = "task.json"
"""What a task learned from its training data and needs again, beside the configuration."""
_ROBERTA_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_size",
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "max_positions",
}


@dataclass(frozen=True)
class Start:
    """Where a fine-tuning begins."""

    path: Path
    config: RunConfig
    """Model sizes and the contrastive temperature's limits are taken from it."""
    tokenizer: Tokenizer
    weights: Mapping[str, torch.Tensor]
    """Without those of heads."""
    folder: Path
    """Where they lie: of a run, its newest checkpoint."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the weights."""
        digest = hashlib.blake2b(digest_size=8)
        for name, weight in sorted(self.weights.items()):
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            digest.update(weight.detach().float().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class LoadedTask:
    """A fine-tuned model on one device (a `predict.TaskEngine`)."""

    module: TaskModel
    config: RunConfig
    files: CheckpointFiles
    task: Task
    tokenizer: Tokenizer
    assets: Mapping[str, Any]
    device: torch.device
    communicator: Communicator = field(default_factory=SingleProcess)

    def forward(self, batch: PackedBatch, /) -> TaskOutput:
        output: TaskOutput = self.module(batch)
        return output


def read_start(path: Path, *, tokenizer: Path | None = None) -> Start:
    """The model at `path`, whatever its kind; a fine-tuned one gives its body.

    tokenizer: file or folder; None: the model's own.

    Raises:
        UserError: nothing there, damaged, or no tokenizer that fits.
    """
    config_file = path / checkpoint.CONFIG_FILE
    if config_file.is_file() and strict_json.read(config_file, dict[str, Any]).get("model_type") == "roberta":
        return _read_roberta(path, tokenizer)
    files = checkpoint.find(path)
    config = checkpoint.read_config(files.config)
    weights = checkpoint.read_weights(files.weights)
    checkpoint.check_size(weights, config, files)
    body = {name: weight.float() for name, weight in weights.items() if not name.startswith(HEAD_PREFIX)}
    return Start(path, config, tokenizer_of(files, config, tokenizer), body, files.weights.parent)


def check_start(run_dir: Path, start: Start | None, *, is_done: bool) -> None:
    """All seeds of a fine-tuning begin with the same weights; the run that is fine-tuned may go on meanwhile.

    start: None where they begin from scratch. is_done: the result is only read; weights that lay where `start` is now will do.

    Raises:
        UserError: what is in `run_dir` began otherwise.
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
    """Put on record what the first seed begins with, for `check_start`. Raises UserError: not writable."""
    path = run_dir / START_FILE
    if not path.is_file():
        write_whole(path, (json.dumps(_record(start)) + "\n").encode())


def _record(start: Start | None) -> dict[str, str]:
    if start is None:
        return {"folder": "", "fingerprint": ""}
    return {"folder": str(start.folder), "fingerprint": start.fingerprint}


def _begun(run_dir: Path) -> dict[str, str] | None:
    """The record; of a directory from before there were any, the path that was given for its seeds. None: nothing is there."""
    if (run_dir / START_FILE).is_file():
        known: dict[str, str] = strict_json.read(run_dir / START_FILE, dict[str, str])
        return {"folder": "", "fingerprint": "", **known}
    for file in sorted(run_dir.glob(f"seed-*/{checkpoint.CONFIG_FILE}")):
        if (finetuning := checkpoint.read_config(file).finetune) is not None:
            return {"folder": finetuning.start}
    return None


def fill(model: TaskModel, start: Start) -> None:
    """Put the starting weights into a model, in place; its head keeps its fresh ones. Positions of another grid of patches are
    interpolated.

    Raises:
        UserError: weights of another model.
    """
    own = {name: value for name, value in model.named_parameters() if not name.startswith(HEAD_PREFIX)}
    weights = at_resolution(start.weights, start.config.model, model.config, where=str(start.path))
    checkpoint.fill(own, weights, where=f"{start.path} does not fit its own configuration")


def load_task(
    path: Path,
    *,
    name: str | None = None,
    device: torch.device | None = None,
    communicator: Communicator | None = None,
) -> LoadedTask:
    """The fine-tuned model at `path`, in float32 and evaluation mode.

    name: the task it must be tuned on; None: whichever it is.

    Raises:
        UserError: a pre-trained model, one of another task, or damaged.
    """
    files = checkpoint.find(path)
    config = checkpoint.read_config(files.config)
    if config.finetune is None:
        wanted = name or "TASK"
        raise UserError(
            f"{path} is a pre-trained model, not one fine-tuned on {wanted}; run `unimo finetune {wanted} --checkpoint {path}`"
        )
    if name is not None and config.finetune.task != name:
        raise UserError(f"{path} is fine-tuned on {config.finetune.task}, not on {name}; give a checkpoint of {name}")
    task = tasks.load(config.finetune.task)
    weights = checkpoint.read_weights(files.weights)
    checkpoint.check_size(weights, config, files)
    module = TaskModel(config, task.make_head(config), tag_sizes=task.tag_sizes)
    checkpoint.fill(
        dict(module.named_parameters()), weights, where=f"{files.weights} does not fit the model of {files.config}"
    )
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assets_file = files.config.parent / ASSETS_FILE
    return LoadedTask(
        module.to(chosen).eval(),
        config,
        files,
        task,
        find_tokenizer(files, config),
        strict_json.read(assets_file, dict[str, Any]) if assets_file.is_file() else {},
        chosen,
        communicator or SingleProcess(),
    )


def is_finetuned(path: Path) -> bool:
    """Whether the checkpoint at `path` is of a fine-tuning.

    Raises:
        UserError: as `checkpoint.find` and `read_config`.
    """
    return checkpoint.read_config(checkpoint.find(path).config).finetune is not None


def tokenizer_of(files: CheckpointFiles, config: RunConfig, given: Path | None) -> Tokenizer:
    """The given tokenizer (file or folder), where it is the model's; None: the one that is found.

    Raises:
        UserError: another one than the model's, which lies beside it or whose fingerprint or at least size it knows; and as
            `find_tokenizer`.
    """
    if given is None:
        return _checked(find_tokenizer(files, config), config, files.weights.parent)
    own = _beside(files.weights.parent, files.config.parent)
    known = config.data.made_with.get("tokenizer") if own is None else own.fingerprint
    return _checked(tokenizers.load(given), config, files.weights.parent, known)


def find_tokenizer(files: CheckpointFiles, config: RunConfig) -> Tokenizer:
    """Of an export or a fine-tuning, which keep it beside the weights or the configuration, or of a run's data.

    Raises:
        UserError: the data is gone or damaged, or holds another tokenizer.
    """
    beside = _beside(files.weights.parent, files.config.parent)
    if beside is not None:
        return beside
    data = run_paths.from_here(config.data.path, files.config)
    if not data or not any("://" in place or os.path.exists(place) for place in locations.split(data)):
        where = f", and the run's data is not at {data} any more" if data else ""
        raise UserError(
            f"no tokenizer lies beside the model at {files.weights.parent}{where}; give the folder that has its own: "
            "--tokenizer DATA/train"
        )
    found = tokenizers.load(blend.still_there(data).tokenizer_path)
    made_with = config.data.made_with.get("tokenizer")
    if made_with is not None and found.fingerprint != made_with:
        raise UserError(
            f"the data at {data} has another tokenizer ({found.fingerprint}) than the model ({made_with}); give the model's own "
            "with --tokenizer"
        )
    return found


def _beside(*folders: Path) -> Tokenizer | None:
    """Of the first folder that has one."""
    files = (folder / TOKENIZER_FILE for folder in folders)
    return next((tokenizers.load(file) for file in files if file.is_file()), None)


def _checked(found: Tokenizer, config: RunConfig, path: Path, known: str | None = None) -> Tokenizer:
    """path: the model's, for messages. known: fingerprint of its tokenizer.

    Raises:
        UserError: it is another one.
    """
    cure = "give the model's own with --tokenizer"
    if found.vocabulary_size != config.model.vocabulary_size:
        pieces = f"{found.vocabulary_size} pieces and the model at {path} {config.model.vocabulary_size}"
        raise UserError(f"the tokenizer has {pieces}; {cure}")
    if known not in (None, found.fingerprint):
        raise UserError(f"the tokenizer {found.fingerprint} is not {known}, that of the model at {path}; {cure}")
    return found


def _read_roberta(path: Path, tokenizer: Path | None) -> Start:
    file = path / checkpoint.CONFIG_FILE
    found = strict_json.read(file, dict[str, Any])
    sizes = {field_name: found[key] for key, field_name in _ROBERTA_SIZES.items() if key in found}
    model_config = from_dict(
        ModelConfig, {**sizes, "layer_norm_epsilon": found.get("layer_norm_eps", 1e-5)}, where=str(file)
    )
    check_stored(RunConfig(recipe="roberta", model=model_config))
    model = Unimo(model_config)
    load_roberta(model, path)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    config = RunConfig(recipe="roberta", model=dataclasses.replace(model_config, initialize_from=str(path)))
    if tokenizer is None:
        return Start(path, config, tokenizers.load(path), weights, path)
    own = _beside(path)
    known = None if own is None else own.fingerprint
    return Start(path, config, _checked(tokenizers.load(tokenizer), config, path, known), weights, path)
