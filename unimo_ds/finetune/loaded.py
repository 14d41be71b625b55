"""Loads a fine-tuned model: a run of `unimo finetune`, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimo_ds.config import RunConfig
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation import checkpoint
from unimo_ds.evaluation.checkpoint import CheckpointFiles
from unimo_ds.evaluation.encode import OneDevice
from unimo_ds.evaluation.own_tokenizer import find_tokenizer
from unimo_ds.finetune import tasks
from unimo_ds.finetune.model import TaskModel, TaskOutput
from unimo_ds.finetune.task import Task
from unimo_ds.utils import strict_json
from unimo_ds.utils.communicator import Communicator, SingleProcess
from unimo_ds.utils.errors import UserError

ASSETS_FILE = "task.json"
"""What a task learned from its training data and needs again, besides the configuration."""


@dataclass(frozen=True)
class LoadedTask(OneDevice[TaskOutput]):
    """A fine-tuned model (a `predict.TaskEngine`)."""

    module: TaskModel
    config: RunConfig
    files: CheckpointFiles
    task: Task
    tokenizer: Tokenizer
    assets: Mapping[str, Any]


def load_task(
    path: Path,
    *,
    name: str | None = None,
    device: torch.device | None = None,
    communicator: Communicator | None = None,
) -> LoadedTask:
    """The fine-tuned model at `path`, in float32 and evaluation mode.

    name: the task it must be fine-tuned on; None: any.

    Raises:
        UserError: a pre-trained model, a model of another task, or a damaged one.
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
    module = checkpoint.made_with(
        checkpoint.weights_of(files, config),
        lambda: TaskModel(config, task.make_head(config), tag_sizes=task.tag_sizes),
        files,
    )
    assets_file = files.config.parent / ASSETS_FILE
    return LoadedTask(
        *checkpoint.on_device(module, device),
        config,
        files,
        task,
        find_tokenizer(files, config),
        strict_json.read(assets_file, dict[str, Any]) if assets_file.is_file() else {},
        communicator=communicator or SingleProcess(),
    )
