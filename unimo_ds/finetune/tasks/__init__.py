"""Named tasks: each file has one object `TASK`, and `load(name)` returns it. Importing this package imports nothing heavy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from unimo_ds.utils.errors import UserError, nearest_name

if TYPE_CHECKING:
    from unimo_ds.finetune.task import Task

NAMES = (
    *("sst2", "mnli", "cola", "stsb"),
    *("cnndm", "gigaword", "squad-questions", "coqa"),
    *("retrieval", "captioning", "snli-ve", "vqa"),
)


def check_name(name: str) -> None:
    """
    Raises:
        UserError: no such task; the message names the nearest one.
    """
    if name not in NAMES:
        raise UserError(f"unknown task {name!r}{nearest_name(name, NAMES)}")


def load(name: str) -> Task:
    """The task with that name on the command line.

    Raises:
        UserError: no such task; the message names the nearest one.
    """
    check_name(name)
    task: Task = importlib.import_module(f"unimo_ds.finetune.tasks.{name.replace('-', '_')}").TASK
    return task
