"""What a checkpoint can do: `unimo evaluate`, `finetune`, `report`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from unimo_ds.commands.common import add_json, emit, progress_beside_json, write_text
from unimo_ds.serving.foil_files import FORMATS
from unimo_ds.serving.options import CHECKPOINT_HELP
from unimo_ds.utils.command_line import add_command
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.launchers import is_alone


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_evaluate(
        add_command(commands, "evaluate", "measure a checkpoint on held-out data", _evaluate, _EVALUATE_EXAMPLE)
    )
    purpose = "train a checkpoint on a downstream task and measure it"
    _add_finetune(add_command(commands, "finetune", purpose, _finetune, _FINETUNE_EXAMPLE))
    _add_report(
        add_command(commands, "report", "fill in the paper's tables with your own results", _report, _REPORT_EXAMPLE)
    )


_EVALUATE_EXAMPLE = """unimo evaluate retrieval --checkpoint runs/demo --data demo_data/held_out --json retrieval.json
  unimo evaluate sst2 --checkpoint runs/finetune/sst2/seed-0/checkpoints/best --data glue/SST-2"""


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from unimo_ds.finetune.arguments import add_evaluation

    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_OR_DIR", help=CHECKPOINT_HELP)
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    zero_shot = parser.add_argument_group("for retrieval, rewrites and zero-shot (a pre-trained checkpoint)")
    zero_shot.add_argument(
        "--num-pairs", type=int, default=0, help="measure on N pairs, evenly spread (default: all)", metavar="N"
    )
    zero_shot.add_argument(
        "--rerank", type=int, default=0, metavar="K", help="also re-rank the top K of each query with joint encodings"
    )
    zero_shot.add_argument("--pictures", type=Path, metavar="DIR", help="draw some retrievals as PNG files")
    add_evaluation(parser)
    classes = parser.add_argument_group("for classification (one folder of images for each class, named after it)")
    classes.add_argument(
        "--prompt",
        nargs="+",
        metavar="TEXT",
        help='sentences, with {} in place of the class name (default: three, such as "a photo of a {}")',
    )
    foils = parser.add_argument_group("for foils (a folder of a benchmark's official files)")
    foils.add_argument("--benchmark", choices=tuple(FORMATS), metavar="NAME", help=f"one of {', '.join(FORMATS)}")
    foils.add_argument("--images", nargs="+", type=Path, metavar="DIR", help="folders that hold its images")
    foils.add_argument("--skip-missing", action="store_true", help="leave out items whose images are not there")
    add_json(parser)


_OPTIONS: dict[str, dict[str, Any]] = {
    "zero-shot measures": {"num_pairs": 0, "rerank": 0, "pictures": None},
    "a fine-tuned checkpoint": {"split": "dev", "max_examples": 0, "set": [], "predictions": None},
    "classification": {"prompt": None},
    "foils": {"benchmark": None, "images": None, "skip_missing": False},
}
"""Options that only one kind of measurement takes, with their defaults."""


def _refuse_others(arguments: argparse.Namespace, kind: str) -> None:
    """
    Raises:
        UserError: an option that this kind of measurement would ignore.
    """
    for other, options in _OPTIONS.items():
        for name, default in options.items():
            if other != kind and getattr(arguments, name) != default:
                cure = "; --set finetune.retrieval.rerank=K does the same here" if name == "rerank" else ""
                raise UserError(f"--{name.replace('_', '-')} is an option of {other}, not of {kind}{cure}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from unimo_ds.evaluation import command
    from unimo_ds.finetune import arguments as tuned
    from unimo_ds.utils.machine import device_of

    for name in ("num_pairs", "rerank", "max_examples"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must not be negative")
    if arguments.task == "classification":
        _refuse_others(arguments, "classification")
        return _classify(arguments)
    if arguments.task == "foils":
        _refuse_others(arguments, "foils")
        return _tell_apart(arguments)
    if tuned.is_for_finetuned(arguments.task, arguments.checkpoint):
        _refuse_others(arguments, "a fine-tuned checkpoint")
        from unimo_ds.finetune import evaluate

        result = evaluate.evaluate(
            arguments.task,
            path=arguments.checkpoint,
            data=Path(arguments.data),
            split=arguments.split,
            max_examples=arguments.max_examples,
            device=device_of(arguments.device),
            predictions=arguments.predictions,
            overrides=arguments.set,
        )
        if int(os.environ.get("RANK", "0")) == 0:
            emit(result, evaluate.to_text(result), arguments.json)
        return
    _refuse_others(arguments, "zero-shot measures")
    result = command.evaluate(
        arguments.task,
        path=arguments.checkpoint,
        data=arguments.data,
        num_pairs=arguments.num_pairs,
        rerank=arguments.rerank,
        device=arguments.device,
        pictures=arguments.pictures,
    )
    emit(result, command.to_text(result), arguments.json)


def _classify(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving import classification
    from unimo_ds.serving.model import ServedModel
    from unimo_ds.utils.machine import device_of

    model = ServedModel.open(arguments.checkpoint, device=device_of(arguments.device))
    prompts = arguments.prompt or classification.DEFAULT_PROMPTS
    result = classification.classify(model, Path(arguments.data), prompts=prompts)
    emit(result, classification.to_text(result), arguments.json)


def _tell_apart(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving import foils
    from unimo_ds.serving.model import ServedModel
    from unimo_ds.utils.machine import device_of

    if not (arguments.benchmark and arguments.images):
        raise UserError(f"foils needs --benchmark ({', '.join(FORMATS)}) and --images, the folders of its images")
    model = ServedModel.open(arguments.checkpoint, device=device_of(arguments.device))
    result = foils.measure(
        model,
        arguments.benchmark,
        Path(arguments.data),
        images=arguments.images,
        skip_missing=arguments.skip_missing,
    )
    emit(result, foils.to_text(result), arguments.json)


_FINETUNE_EXAMPLE = "unimo finetune sst2 --data glue/SST-2 --checkpoint runs/base --seeds 3 --json sst2.json"


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    from unimo_ds.finetune import arguments

    arguments.add(parser)
    add_json(parser)


def _finetune(arguments: argparse.Namespace) -> int:
    from unimo_ds.finetune.arguments import check

    if is_alone(os.environ):  # several processes agree first, so that only one reports
        check(arguments)

    with progress_beside_json(arguments.json):
        from unimo_ds.finetune import command  # also DeepSpeed, whose log takes the stdout that it finds

        status, result = command.run(arguments)
    if result:
        emit(result, command.to_text(result), arguments.json)
    return status


_REPORT_EXAMPLE = "unimo report --ours base=runs/finetune --markdown tables.md --json tables.json"


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="LABEL=FOLDER",
        help="add a row LABEL with the results below FOLDER, of `unimo finetune` and `unimo evaluate --json`; may be repeated",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="OUT", help="write the tables to this file instead of printing them"
    )
    add_json(parser)


def _report(arguments: argparse.Namespace) -> None:
    from unimo_ds.reporting import report

    rows = [report.parse_row(text) for text in arguments.ours] or [report.Row("this project")]
    text = report.to_markdown(rows)
    if arguments.markdown is not None:
        write_text(arguments.markdown, text)
        text = f"wrote {arguments.markdown}"
    emit(report.to_json(rows), text.rstrip(), arguments.json)
