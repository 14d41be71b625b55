"""Arguments of `unimo finetune`, apart from what it does, so that `unimo --help` imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimo_ds.finetune.tasks import NAMES
from unimo_ds.utils import locations


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the task's official files")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="RUN_OR_DIR",
        help="run, checkpoint, export, or RoBERTa folder",
    )
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="default: runs/finetune/TASK; the same again resumes"
    )
    parser.add_argument("--recipe", choices=("base", "large"), default="base", help="whose numbers of the paper")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1, one after the other")
    parser.add_argument(
        "--from-scratch", action="store_true", help="fresh weights of the checkpoint's sizes, to compare"
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file or folder (default: the checkpoint's)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field, e.g. finetune.epochs=3"
    )


ZERO_SHOT = ("retrieval", "rewrites", "zero-shot", "classification")
"""What `unimo evaluate` measures of a pre-trained checkpoint."""


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """What `unimo evaluate` takes for fine-tuned checkpoints, and what it takes for all."""
    others = tuple(name for name in NAMES if name not in ZERO_SHOT)
    parser.add_argument(
        "task",
        choices=(*ZERO_SHOT, *others),
        metavar="TASK",
        help=f"{', '.join(ZERO_SHOT)} (zero-shot: the first two and losses); of a fine-tuned one {', '.join(NAMES)}",
    )
    parser.add_argument(
        "--data",
        required=True,
        action=locations.Repeated,
        help="data folder with pairs (several: --data A --data B, or A::B), or the task's official files",
    )
    tuned = parser.add_argument_group("a fine-tuned checkpoint")
    tuned.add_argument("--split", choices=("train", "dev", "test"), default="dev", help="default: dev")
    tuned.add_argument("--max-examples", type=int, default=0, help="so many examples, evenly spread (default: all)")
    tuned.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. finetune.generation.beams=1"
    )
    tuned.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write an answer for each example, as JSON lines; .tsv as GLUE takes them, .json as VQA, CoQA and COCO do",
    )


def is_for_finetuned(task: str, checkpoint: Path) -> bool:
    """Whether a measurement is of a fine-tuned model. Retrieval is both: the checkpoint decides."""
    if task not in NAMES or task not in ZERO_SHOT:
        return task in NAMES
    from unimo_ds.finetune.start import is_finetuned

    return is_finetuned(checkpoint)
