"""Which settings fine-tuning uses. `--set` refuses the others: they would be recorded but have no effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from unimo_ds.overrides import key_of
from unimo_ds.utils.errors import UserError

OF_EVERY_TASK = (
    "model",
    "data.made_with",
    "data.max_text_tokens",
    "data.max_regions",
    "data.prefetch_steps",
    "batch",
    "contrast.temperature",
    "contrast.min_temperature",
    "contrast.max_temperature",
    "optimizer",
    "schedule",
    "engine",
    "spikes",
    "checkpoint",
    "evaluation.every_steps",
    "evaluation.at_start",
    "logging.every_steps",
    "logging.trace_steps",
    "logging.trackers",
    "logging.project",
    "finetune",
)
"""Keys and groups of keys; all others are for pre-training. Some are used by only some tasks, see `OF_SOME_TASKS`."""
HEAD = ("finetune.head_dropout",)
WRITING = ("finetune.label_smoothing", "finetune.max_target_tokens", "finetune.generation")
RETRIEVAL = ("contrast", "engine.contrastive", "finetune.retrieval")
CAPTIONING = ("finetune.captioning",)
ANSWERS = ("finetune.answer_min_count",)
OF_SOME_TASKS = {
    **dict.fromkeys(HEAD, "tasks that do not write do"),
    **dict.fromkeys(WRITING, "tasks that write do"),
    **dict.fromkeys(RETRIEVAL, "retrieval does"),
    **dict.fromkeys(CAPTIONING, "captioning does"),
    **dict.fromkeys(ANSWERS, "vqa does"),
}
"""Key -> the tasks that use it; `Task.reads` lists the keys of a task."""


def check(overrides: Iterable[str]) -> None:
    """
    Raises:
        UserError: an override of a setting that no fine-tuning uses.
    """
    for key in map(key_of, overrides):
        if not _is_of(key, OF_EVERY_TASK):
            raise UserError(f"--set {key}=... is not taken; pre-training alone reads it")


def check_task(overrides: Iterable[str], reads: Collection[str], *, task: str) -> None:
    """
    reads: `Task.reads`.

    Raises:
        UserError: an override of a setting that only other tasks use.
    """
    for key in map(key_of, overrides):
        for name, who in OF_SOME_TASKS.items():
            if name not in reads and _is_of(key, (name,)):
                raise UserError(f"--set {key}=... is not taken; {task} does not read it, {who}")


def _is_of(key: str, names: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in names)
