"""`unimo COMMAND ...`: what is asked of the project beside training. Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unimo_ds
from unimo_ds import recipes
from unimo_ds.utils.errors import UserError, run_command

if TYPE_CHECKING:
    from unimo_ds.config import RunConfig

_TO_STDOUT = "-"
_INTERRUPTED = 130
_CHECKPOINT_HELP = "run (its newest checkpoint), RUN/checkpoints/best, one checkpoint, or an exported folder"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit status: 0, 1 where a check finds something wrong, 2 on bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    # `deepspeed --module unimo_ds ...` puts this in front; every rank finds its place by the environment.
    words = [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))]
    if words[:1] == ["prepare"]:
        from unimo_ds.data.prepare import command

        return _guarded(lambda: command.main(words[1:]))
    if words[:2] == ["doctor", "preflight"]:
        from unimo_ds.preflight import command as preflight

        return _guarded(lambda: preflight.main(words[2:]))
    if words[:1] == ["kernels"]:
        from unimo_ds.ops.native import command as kernels

        return _guarded(lambda: kernels.main(words[1:]))
    if words[:1] == ["search"]:
        from unimo_ds.serving import search_command

        return _guarded(lambda: search_command.main(words[1:]))
    arguments = _parser().parse_args(words)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    return _guarded(lambda: run_command(lambda: run(arguments)))


def _guarded(command: Callable[[], int]) -> int:
    try:
        status = command()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; Python must not complain again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unimo",
        description="Prepare data for, plan, examine and evaluate UNIMO pre-training. Train with: deepspeed unimo_ds/train.py",
        epilog="example:\n  unimo plan --recipe base_32xv100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unimo_ds {unimo_ds.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # Only listed here: its own parser is in data/prepare/command.py.
    commands.add_parser("prepare", help="raw corpora to shards, stage by stage", add_help=False)
    # Likewise in ops/native/command.py.
    commands.add_parser("kernels", help="build the CUDA kernels, or check them without a GPU", add_help=False)
    # And in serving/search_command.py.
    commands.add_parser("search", help="a collection by a text or an image; build one; a page for it", add_help=False)
    _add_plan(_command(commands, "plan", "what a run needs, before any GPU is booked", _plan, _PLAN_EXAMPLE))
    _add_evaluate(_command(commands, "evaluate", "measure a checkpoint on held-out data", _evaluate, _EVALUATE_EXAMPLE))
    _add_finetune(
        _command(
            commands, "finetune", "train a checkpoint on a downstream task and measure it", _finetune, _FINETUNE_EXAMPLE
        )
    )
    _add_report(_command(commands, "report", "the paper's tables with one's own figures", _report, _REPORT_EXAMPLE))
    _add_export(
        _command(
            commands,
            "export",
            "a model with tokenizer and processor in one folder for transformers",
            _export,
            _EXPORT_EXAMPLE,
        )
    )
    _add_convert(
        _command(commands, "convert", "the officially released parameters in a folder", _convert, _CONVERT_EXAMPLE)
    )
    _add_generate(commands)
    _add_inspect(
        _command(
            commands, "inspect", "show a shard, data folder, run or the order of a run", _inspect, _INSPECT_EXAMPLE
        )
    )
    _add_json(
        _command(
            commands, "doctor", "what this machine has, and what each missing piece costs", _doctor, _DOCTOR_EXAMPLE
        )
    )
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int | None],
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const=_TO_STDOUT, metavar="OUT", help="the result as JSON, to the file OUT or printed"
    )


def _emit(result: dict[str, Any], text: str, target: str | None) -> None:
    """Print the text, or the result as JSON where asked; a JSON file comes beside the printed text."""
    if target == _TO_STDOUT:
        print(json.dumps(_plain(result), indent=2))
        return
    if target is not None:
        path = Path(target)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_plain(result), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
    print(text)


def _plain(value: Any) -> Any:
    """Without nan and infinities, which JSON lacks: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# unimo plan

_PLAN_EXAMPLE = "unimo plan --recipe base_32xv100 --data data/train --utilisation 0.4"


def _add_recipe(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--recipe", required=required, default="demo", help=f"one of {', '.join(recipes.NAMES)}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field of the recipe, as in training"
    )


def _config(arguments: argparse.Namespace, data: str | None) -> RunConfig:
    from unimo_ds.config import apply_overrides
    from unimo_ds.config_check import check

    config = apply_overrides(recipes.load(arguments.recipe), arguments.set)
    if data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=data))
    check(config)
    return config


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--data", help="data folder: count its sequences instead of assuming their lengths")
    parser.add_argument("--devices", type=int, help="number of GPUs (or CPU processes); default: the recipe's")
    parser.add_argument("--hardware", help="v100, a100, h100, h200 or cpu; default: the recipe's")
    parser.add_argument(
        "--utilisation", type=float, default=0.55, help="share of the peak that is reached (default 0.55)"
    )
    parser.add_argument(
        "--measured",
        metavar="ROWS",
        help="take the share from a file of `python -m benchmarks.step`, made on such a device",
    )
    _add_json(parser)


def _plan(arguments: argparse.Namespace) -> None:
    from unimo_ds import planning
    from unimo_ds.data.corpus import Corpus

    config = _config(arguments, arguments.data)
    corpus = None
    if arguments.data is not None:
        corpus = Corpus.open(arguments.data)
        config = recipes.fit_to_data(config, corpus)
    result = planning.plan(
        config,
        corpus=corpus,
        devices=arguments.devices,
        hardware=arguments.hardware,
        utilisation=arguments.utilisation,
        measured=arguments.measured,
    )
    _emit(dataclasses.asdict(result), planning.to_text(result), arguments.json)


# unimo evaluate

_EVALUATE_EXAMPLE = """unimo evaluate retrieval --checkpoint runs/demo --data demo_data/held_out --json retrieval.json
  unimo evaluate sst2 --checkpoint runs/finetune/sst2/seed-0/checkpoints/best --data glue/SST-2"""


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from unimo_ds.finetune.arguments import add_evaluation

    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_OR_DIR", help=_CHECKPOINT_HELP)
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    zero_shot = parser.add_argument_group("retrieval, rewrites, zero-shot: a pre-trained checkpoint")
    zero_shot.add_argument("--num-pairs", type=int, default=0, help="so many pairs, evenly spread (default: all)")
    zero_shot.add_argument("--rerank", type=int, default=0, metavar="K", help="encode the best K of each query jointly")
    zero_shot.add_argument("--pictures", type=Path, metavar="DIR", help="write some retrievals as PNG files")
    add_evaluation(parser)
    classes = parser.add_argument_group("classification: images, a folder a class, by the names of their classes")
    classes.add_argument(
        "--prompt", nargs="+", metavar="TEXT", help="sentences with {} where the name of the class goes"
    )
    _add_json(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    from unimo_ds.evaluation import command
    from unimo_ds.finetune import arguments as tuned

    if arguments.task == "classification":
        return _classify(arguments)
    if arguments.num_pairs < 0 or arguments.rerank < 0:
        raise UserError(f"--num-pairs {arguments.num_pairs} and --rerank {arguments.rerank} must not be negative")
    if tuned.is_for_finetuned(arguments.task, arguments.checkpoint):
        from unimo_ds.finetune import evaluate

        result = evaluate.evaluate(
            arguments.task,
            path=arguments.checkpoint,
            data=Path(arguments.data),
            split=arguments.split,
            max_examples=arguments.max_examples,
            device=command.device_of(arguments.device),
            predictions=arguments.predictions,
            overrides=arguments.set,
        )
        if int(os.environ.get("RANK", "0")) == 0:
            _emit(result, evaluate.to_text(result), arguments.json)
        return
    result = command.evaluate(
        arguments.task,
        path=arguments.checkpoint,
        data=arguments.data,
        num_pairs=arguments.num_pairs,
        rerank=arguments.rerank,
        device=arguments.device,
        pictures=arguments.pictures,
    )
    _emit(result, command.to_text(result), arguments.json)


# unimo finetune

_FINETUNE_EXAMPLE = "unimo finetune sst2 --data glue/SST-2 --checkpoint runs/base --seeds 3 --json sst2.json"


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    from unimo_ds.finetune import arguments

    arguments.add(parser)
    _add_json(parser)


def _finetune(arguments: argparse.Namespace) -> int:
    from unimo_ds.finetune import command

    status, result = command.run(arguments)
    if result:
        _emit(result, command.to_text(result), arguments.json)
    return status


def _classify(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving import classification, options
    from unimo_ds.serving.model import ServedModel

    model = ServedModel.open(arguments.checkpoint, device=options.parse_device(arguments.device))
    prompts = arguments.prompt or classification.DEFAULT_PROMPTS
    result = classification.classify(model, Path(arguments.data), prompts=prompts)
    _emit(result, classification.to_text(result), arguments.json)


# unimo report

_REPORT_EXAMPLE = "unimo report --ours base=runs/finetune --markdown tables.md --json tables.json"


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="LABEL=FOLDER",
        help="a row of the tables: results below the folder (`unimo finetune`, `unimo evaluate --json`); may be repeated",
    )
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the tables there instead of printing them")
    _add_json(parser)


def _report(arguments: argparse.Namespace) -> None:
    from unimo_ds.reporting import report

    rows = [report.parse_row(text) for text in arguments.ours] or [report.Row("this project")]
    text = report.to_markdown(rows)
    if arguments.markdown is not None:
        try:
            arguments.markdown.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {arguments.markdown}: {error.strerror}") from None
        text = f"wrote {arguments.markdown}"
    _emit(report.to_json(rows), text.rstrip(), arguments.json)


# unimo export

_EXPORT_EXAMPLE = "unimo export --checkpoint runs/demo --to exported/demo"


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_OR_DIR", help=_CHECKPOINT_HELP)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file or folder (default: the one of the run's data)")
    parser.add_argument("--extractor", type=Path, help="region extractor (default: the one of the run's data)")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the stored weights")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, help="split larger weights over files (default 5)")
    _add_json(parser)


def _export(arguments: argparse.Namespace) -> None:
    from unimo_ds.export.folder import export

    if arguments.max_shard_gb <= 0:
        raise UserError(f"--max-shard-gb {arguments.max_shard_gb} must be more than 0")
    written = export(
        arguments.checkpoint,
        arguments.to,
        tokenizer=arguments.tokenizer,
        extractor=arguments.extractor,
        dtype=arguments.dtype,
        max_shard_bytes=int(arguments.max_shard_gb * 1e9),
    )
    sizes = {str(path): path.stat().st_size for path in written}
    text = "\n".join(f"wrote {name} ({size:,} bytes)" for name, size in sizes.items())
    _emit({"folder": str(arguments.to), "files": sizes}, text, arguments.json)


# unimo convert

_CONVERT_EXAMPLE = "unimo convert --paddle unimo_base_en/params --tokenizer roberta-base --to pretrained/unimo-base"


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--paddle",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with one file a parameter, as PaddlePaddle saves",
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="RoBERTa's tokenizer")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the stored weights")
    _add_json(parser)


def _convert(arguments: argparse.Namespace) -> None:
    from unimo_ds.export.released import convert

    report, written = convert(arguments.paddle, arguments.to, tokenizer=arguments.tokenizer, dtype=arguments.dtype)
    result = {"folder": str(arguments.to), "files": [str(path) for path in written], **dataclasses.asdict(report)}
    _emit(result, f"{report.text()}\nwrote {arguments.to}", arguments.json)


# unimo generate


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from unimo_ds.serving import generate_command

    purpose = "write texts from photographs, from texts, or from both"
    parser = _command(commands, "generate", purpose, _generate, generate_command.EXAMPLE)
    generate_command.add(parser)
    _add_json(parser)


def _generate(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving import generate_command

    result = generate_command.run(arguments)
    _emit(result, generate_command.to_text(result), arguments.json)


# unimo inspect

_INSPECT_EXAMPLE = """unimo inspect demo_data/train
  unimo inspect runs/demo --html demo.html
  unimo inspect sample --data demo_data/train --sample 3 --html sample.html
  unimo inspect order --data demo_data/train --recipe demo --steps 100:102 --world-size 2 --json order.json"""


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="shard (.tar), data folder, run or checkpoint; or the word `order` or `sample`"
    )
    parser.add_argument("--samples", type=int, default=3, help="samples shown of a shard (default 3)")
    parser.add_argument("--html", type=Path, metavar="OUT", help="of a run or a sample: write it as a page")
    sample = parser.add_argument_group(
        "unimo inspect sample: one sample of --data with its picture, as a page (--html)"
    )
    sample.add_argument("--sample", default="0", metavar="N", help="number or key of the sample (default 0)")
    order = parser.add_argument_group("unimo inspect order: what each step will read, without training")
    order.add_argument("--data", help="data folder")
    _add_recipe(parser, required=False)
    order.add_argument("--steps", default="0:1", metavar="A:B", help="steps A to B - 1 (default 0:1)")
    order.add_argument("--world-size", type=int, default=1)
    order.add_argument("--workers", type=int, default=0, help="loader processes that make the plans; changes nothing")
    _add_json(parser)


def _inspect(arguments: argparse.Namespace) -> None:
    if arguments.path == "order":
        return _inspect_order(arguments)
    if arguments.path == "sample":
        return _inspect_sample(arguments)
    if arguments.html is not None:
        from unimo_ds import run_page

        written = run_page.write_page(Path(arguments.path), arguments.html)
        _emit(written, "\n".join(f"{name}: {value}" for name, value in written.items()), arguments.json)
        return None
    from unimo_ds import inspection

    found = inspection.inspect_path(Path(arguments.path), num_samples=arguments.samples)
    _emit(found, inspection.to_text(found), arguments.json)
    return None


def _inspect_sample(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.sample_page import sample_number, sample_page

    if arguments.data is None or arguments.html is None:
        raise UserError("unimo inspect sample needs --data DIR and --html OUT")
    corpus = Corpus.open(arguments.data)
    number = sample_number(corpus, arguments.sample)
    page = sample_page(corpus, number)
    try:
        arguments.html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {arguments.html}: {error.strerror}") from None
    text = f"wrote {arguments.html} ({len(page):,} characters)"
    _emit({"page": str(arguments.html), "sample": number, "key": corpus.key(number)}, text, arguments.json)


def _inspect_order(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.inspect_order import inspect_order, parse_steps

    if arguments.data is None:
        raise UserError("unimo inspect order needs --data DIR")
    steps = parse_steps(arguments.steps)
    config = _config(arguments, arguments.data)
    corpus = Corpus.open(arguments.data)
    config = recipes.fit_to_data(config, corpus)
    result = inspect_order(corpus, config, steps=steps, world_size=arguments.world_size, num_workers=arguments.workers)
    lines = []
    for step in result["steps"]:
        lines.append(f"step {step['step']}: {len(step['global_batch'])} samples")
        lines += [f"  rank {rank}: {' '.join(keys)}" for rank, keys in enumerate(step["ranks"])]
    _emit(result, "\n".join(lines), arguments.json)


# unimo doctor

_DOCTOR_EXAMPLE = "unimo doctor\n  srun unimo doctor preflight --data data      the nodes of a job, see its own --help"


def _doctor(arguments: argparse.Namespace) -> int:
    from unimo_ds import doctor

    findings = doctor.examine()
    _emit(doctor.to_dict(findings), doctor.to_text(findings), arguments.json)
    return 0 if doctor.is_fit(findings) else 1
