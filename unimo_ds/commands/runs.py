"""Before and during a run: `unimo plan`, `inspect`, `doctor`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from unimo_ds import recipes
from unimo_ds.commands.common import add_command, add_json, add_recipe, config_of, emit
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_plan(add_command(commands, "plan", "what a run needs, before any GPU is booked", _plan, _PLAN_EXAMPLE))
    purpose = "show a shard, data folder, run or the order of a run"
    _add_inspect(add_command(commands, "inspect", purpose, _inspect, _INSPECT_EXAMPLE))
    purpose = "what this machine has, and what each missing piece costs"
    add_json(add_command(commands, "doctor", purpose, _doctor, _DOCTOR_EXAMPLE))


_PLAN_EXAMPLE = "unimo plan --recipe base_32xv100 --data data/train --utilisation 0.4"


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--data",
        action=locations.Repeated,
        help="data folders, as in training: count their sequences instead of assuming lengths",
    )
    parser.add_argument("--devices", type=int, help="number of GPUs (or CPU processes); default: the recipe's")
    parser.add_argument("--hardware", help="v100, a100, h100, h200 or cpu; default: the recipe's")
    parser.add_argument(
        "--utilisation", type=float, default=0.55, help="share of the peak that is reached (default 0.55)"
    )
    parser.add_argument(
        "--measured",
        metavar="ROWS",
        help="take the share from a file of `python -m benchmarks.step`: of such a device, or of another GPU with --profile",
    )
    add_json(parser)


def _plan(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.corpus_check import check_corpus
    from unimo_ds.planning import plan, text

    config = config_of(arguments, arguments.data)
    corpus = None
    if arguments.data is not None:
        corpus = Corpus.open(config.data.path)
        config = recipes.fit_to_data(config, corpus)
    result = plan.plan(
        config,
        corpus=corpus,
        devices=arguments.devices,
        hardware=arguments.hardware,
        utilisation=arguments.utilisation,
        measured=arguments.measured,
    )
    emit(dataclasses.asdict(result), text.to_text(result), arguments.json)
    if corpus is not None:
        check_corpus(corpus, config)  # what training would refuse, before a queue has been waited through


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
    order.add_argument("--data", action=locations.Repeated, help="data folders, as in training")
    add_recipe(parser, required=False)
    order.add_argument("--steps", default="0:1", metavar="A:B", help="steps A to B - 1 (default 0:1)")
    order.add_argument("--world-size", type=int, default=1)
    order.add_argument("--workers", type=int, default=0, help="loader processes that make the plans; changes nothing")
    add_json(parser)


def _inspect(arguments: argparse.Namespace) -> None:
    if arguments.path == "order":
        return _inspect_order(arguments)
    if arguments.path == "sample":
        return _inspect_sample(arguments)
    if arguments.html is not None:
        from unimo_ds import run_page

        written = run_page.write_page(Path(arguments.path), arguments.html)
        lines = [
            f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in written.items()
        ]
        emit(written, "\n".join(lines), arguments.json)
        return None
    from unimo_ds import inspection

    found = inspection.inspect_path(Path(arguments.path), num_samples=arguments.samples)
    emit(found, inspection.to_text(found), arguments.json)
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
    emit({"page": str(arguments.html), "sample": number, "key": corpus.key(number)}, text, arguments.json)


def _inspect_order(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.inspect_order import inspect_order, parse_steps

    if arguments.data is None:
        raise UserError("unimo inspect order needs --data DIR")
    steps = parse_steps(arguments.steps)
    config = config_of(arguments, arguments.data)
    corpus = Corpus.open(config.data.path)
    config = recipes.fit_to_data(config, corpus)
    result = inspect_order(corpus, config, steps=steps, world_size=arguments.world_size, num_workers=arguments.workers)
    lines = []
    for step in result["steps"]:
        lines.append(f"step {step['step']}: {len(step['global_batch'])} samples")
        lines += [f"  rank {rank}: {' '.join(keys)}" for rank, keys in enumerate(step["ranks"])]
    emit(result, "\n".join(lines), arguments.json)


_DOCTOR_EXAMPLE = "unimo doctor\n  srun unimo doctor preflight --data data      the nodes of a job, see its own --help"


def _doctor(arguments: argparse.Namespace) -> int:
    from unimo_ds import doctor

    findings = doctor.examine()
    emit(doctor.to_dict(findings), doctor.to_text(findings), arguments.json)
    return 0 if doctor.is_fit(findings) else 1
