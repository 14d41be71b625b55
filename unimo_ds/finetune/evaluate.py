"""`unimo evaluate TASK` of a fine-tuned checkpoint: measures a split of the official files as in the paper's tables."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unimo_ds.finetune import answers, reads
from unimo_ds.finetune.loaded import load_task
from unimo_ds.finetune.settings import check_finetuning
from unimo_ds.finetune.task import spread
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.agreement import failing_together
from unimo_ds.utils.communicator import Communicator, SingleProcess, make_communicator
from unimo_ds.utils.errors import UserError

_FREE = ("finetune.generation.", "finetune.retrieval.rerank", "batch.micro_batch_tokens")


def evaluate(
    task: str,
    *,
    path: Path,
    data: Path,
    split: str,
    max_examples: int = 0,
    device: torch.device | None = None,
    predictions: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the fine-tuned model at `path`. A collective if a launcher started several processes.

    max_examples: number of examples, evenly spread; 0: all. predictions: file for the answers (`answers.py`). overrides: of
    generation and of what is encoded, `finetune.generation.beams=1` for instance.
    Returns task, checkpoint, split, numbers of examples, metrics and notes; the same on every rank.

    Raises:
        UserError: a checkpoint of another kind or task, bad files, or predictions that cannot be written.
    """
    communicator: Communicator = SingleProcess()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DeepSpeed takes seconds to import; a single process does not need it.
        from unimo_ds.engine.launch import start_processes

        device = start_processes()
        communicator = make_communicator(device)
    with failing_together(communicator):
        if max_examples and predictions is not None and predictions.suffix in answers.OFFICIAL_FORMS:
            raise UserError(
                f"{predictions} needs an answer for every example; leave --max-examples out, or write a .jsonl"
            )
        loaded = load_task(path, name=task, device=device, communicator=communicator)
        if predictions is not None:
            answers.check(predictions, loaded.task.official_form)
        for override in overrides:
            if not override.startswith(_FREE):
                raise UserError(
                    f"--set {override}: only {', '.join(_FREE)}... may differ from the fine-tuning's settings"
                )
        reads.check_task(overrides, loaded.task.reads, task=task)
        loaded = dataclasses.replace(loaded, config=apply_overrides(loaded.config, overrides))
        check_finetuning(loaded.config)
        examples = spread(
            loaded.task.open(data, split, tokenizer=loaded.tokenizer, config=loaded.config, assets=loaded.assets),
            max_examples,
        )
    found = loaded.task.evaluate(loaded, examples, config=loaded.config, tokenizer=loaded.tokenizer)
    if predictions is not None and communicator.rank == 0:
        answers.write(predictions, found.predictions)
    return {
        "task": task,
        "checkpoint": str(loaded.files.weights.parent),
        "data": str(data),
        "split": split,
        "examples": len(examples),
        "max_examples": max_examples,
        "best_metric": loaded.task.best_metric,
        "metrics": found.metrics,
        "notes": found.notes,
    }


def to_text(result: dict[str, Any]) -> str:
    """A table for people."""
    lines = [f"{result['checkpoint']} on {result['split']} of {result['data']}: {result['examples']:,} examples"]
    for name, value in result["metrics"].items():
        lines.append(f"  {name:<28} {value:9.1f}" if name.endswith("rank") else f"  {name:<28} {100 * value:9.2f}")
    return "\n".join([*lines, *(f"  {name}: {text}" for name, text in result["notes"].items())])
