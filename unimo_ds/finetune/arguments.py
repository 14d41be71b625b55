"""Arguments of `unimo finetune`, apart from its code, so that `unimo --help` imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimo_ds.config import RunConfig
from unimo_ds.finetune import reads
from unimo_ds.finetune.tasks import NAMES, check_name
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.overrides import apply_overrides, key_of
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the task's official files")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="RUN_OR_DIR",
        help="model to start from: run, checkpoint, export, or folder of RoBERTa",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="where the runs are kept (default: runs/finetune/TASK); the same folder again resumes",
    )
    parser.add_argument(
        "--recipe",
        choices=("base", "large"),
        default="base",
        help="model size whose hyperparameters (the paper's) to use (default: base)",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train with seeds 0 to N - 1, one after the other (default 1)"
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="for comparison: the checkpoint's sizes and tokenizer with fresh weights",
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file or folder (default: the checkpoint's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. finetune.epochs=3; may be repeated",
    )


_CURES = {
    "data": "give the folder of the task's official files",
    "checkpoint": "give a run directory, one of its checkpoints, an exported folder, or RoBERTa's",
    "tokenizer": "give tokenizer.json or the folder that holds it",
}


_DECIDED = {
    "seed": "--seeds N runs the seeds 0 to N - 1",
    "recipe": "name the task, and the size of its recipe with --recipe",
    "run_dir": "give --run-dir",
    "data.path": "give --data",
    "data.held_out_path": "the files of `dev` are measured on; give --data",
    "model.initialize_from": "give --checkpoint",
    "model.initialize_images_from": "give --checkpoint",
    "finetune.task": "name the task itself: `unimo finetune TASK`",
    "finetune.size": "give --recipe",
    "finetune.start": "give --checkpoint",
    "finetune.num_outputs": "the task and its data decide it",
}
"""Set by an argument or by the data: a value from `--set` would be recorded but not used."""


def check(arguments: argparse.Namespace) -> None:
    """Check what the command line alone shows, before anything heavy is imported.

    Raises:
        UserError: an unknown task, no seed, a setting that does not exist or may not be set, or a path that does not exist.
    """
    check_name(arguments.task)
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds} must be at least 1")
    for key in map(key_of, arguments.set):
        if key in _DECIDED:
            raise UserError(f"--set {key}=... is not taken; {_DECIDED[key]}")
    apply_overrides(RunConfig("finetune", finetune=FinetuneConfig(arguments.task)), arguments.set)
    reads.check(arguments.set)
    for option, cure in _CURES.items():
        path = getattr(arguments, option)
        if path is not None and not path.exists():
            raise UserError(f"there is nothing at --{option} {path}; {cure}")


ZERO_SHOT = ("retrieval", "rewrites", "zero-shot", "classification", "foils")
"""What `unimo evaluate` measures on a pre-trained checkpoint."""


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Arguments of `unimo evaluate`: those for fine-tuned checkpoints, and those for all."""
    others = tuple(name for name in NAMES if name not in ZERO_SHOT)
    parser.add_argument(
        "task",
        choices=(*ZERO_SHOT, *others),
        metavar="TASK",
        help=f"of a pre-trained checkpoint: {', '.join(ZERO_SHOT)} (zero-shot: the first two, and losses); "
        f"of a fine-tuned one: {', '.join(NAMES)}",
    )
    parser.add_argument(
        "--data",
        required=True,
        action=locations.Repeated,
        help="data folder with pairs (several: --data A --data B, or A::B), or folder of the task's official files",
    )
    tuned = parser.add_argument_group("for a fine-tuned checkpoint")
    tuned.add_argument(
        "--split", choices=("train", "dev", "test"), default="dev", help="which split to measure on (default: dev)"
    )
    tuned.add_argument(
        "--max-examples",
        type=int,
        default=0,
        metavar="N",
        help="measure on N examples, evenly spread; in captioning, on N images with all their captions (default: all)",
    )
    tuned.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. finetune.generation.beams=1",
    )
    tuned.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write the answers: .tsv for GLUE's server, .json for VQA, CoQA and COCO, otherwise JSON lines",
    )


def is_for_finetuned(task: str, checkpoint: Path) -> bool:
    """Whether a measurement is of a fine-tuned model. Retrieval exists for both kinds; the checkpoint decides."""
    if task not in NAMES or task not in ZERO_SHOT:
        return task in NAMES
    from unimo_ds.finetune.start import is_finetuned

    return is_finetuned(checkpoint)
