"""`unimo inspect`: contents of a folder, the samples that a step reads, and what the model sees of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from unimo_ds import recipes
from unimo_ds.commands.common import add_json, add_recipe, config_of, emit, write_text
from unimo_ds.utils import locations
from unimo_ds.utils.command_line import add_command
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import printable

if TYPE_CHECKING:
    from unimo_ds.config import RunConfig
    from unimo_ds.data.corpus import Corpus


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    purpose = "show a shard, data folder or run, or what a step of a run reads"
    _add_inspect(add_command(commands, "inspect", purpose, _inspect, _INSPECT_EXAMPLE))


_INSPECT_EXAMPLE = """unimo inspect demo_data/train
  unimo inspect runs/demo --html demo.html
  unimo inspect sample --data demo_data/train --sample 3 --html sample.html
  unimo inspect batch --data demo_data --recipe demo --step 3 --html batch.html
  unimo inspect batch --run-dir runs/demo --step 120 --world-size 2 --rank 1 --html batch.html
  unimo inspect order --data demo_data/train --recipe demo --steps 100:102 --world-size 2 --json order.json"""

_STEPS = ("data", "recipe", "set", "run_dir", "world_size")
_TAKES = {
    "sample": ("data", "sample", "html"),
    "batch": (*_STEPS, "step", "rank", "samples", "html"),
    "order": (*_STEPS, "step", "steps", "workers"),
}
"""Options besides `--json`. A path takes `--samples` or `--html`."""
_DEFAULTS = {
    "sample": "0",
    "recipe": "demo",
    "world_size": 1,
    "step": 0,
    "rank": 0,
    "workers": 0,
}


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="shard (.tar), data folder (also by URL), run or checkpoint; or one of the words `sample`, `batch`, `order`",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="how many samples to show of a folder or shard (default 1) or batch (8)",
    )
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a run, sample or batch as an HTML page")
    add_json(parser)
    sample = parser.add_argument_group("unimo inspect sample: one sample of --data with its picture, as a page")
    sample.add_argument("--sample", metavar="N", help="number or key of the sample (default 0)")
    steps = parser.add_argument_group(
        "unimo inspect batch, order",
        "batch: what one rank's model sees in a step, every sequence and what is masked in it; order: which samples each step "
        "reads. Nothing is trained.",
    )
    steps.add_argument("--data", action=locations.Repeated, help="data folders, as in training")
    add_recipe(steps, required=False)
    steps.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="data and settings of a run, instead of the three above"
    )
    steps.add_argument("--world-size", type=int, metavar="W", help="number of ranks (default 1)")
    steps.add_argument("--step", type=int, metavar="N", help="from 0 (default 0); step N + 1 in a run's metrics")
    steps.add_argument("--rank", type=int, metavar="R", help="batch: which rank's part (default 0)")
    steps.add_argument("--steps", metavar="A:B", help="order: steps A to B - 1, instead of --step")
    steps.add_argument("--workers", type=int, metavar="N", help="order: worker processes; the result is the same")
    parser.set_defaults(**dict.fromkeys(_DEFAULTS))  # so that options given can be told from defaults


def _inspect(arguments: argparse.Namespace) -> None:
    _refuse_ignored(arguments)
    if arguments.samples is not None and arguments.samples < 0:
        raise UserError(f"--samples {arguments.samples} must not be negative")
    for name, value in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.path == "order":
        return _inspect_order(arguments)
    if arguments.path == "sample":
        return _inspect_sample(arguments)
    if arguments.path == "batch":
        return _inspect_batch(arguments)
    if arguments.html is not None:
        from unimo_ds import run_page

        written = run_page.write_page(Path(arguments.path), arguments.html)
        emit(written, "\n".join(f"{name}: {told}" for name, told in run_page.facts(written)), arguments.json)
        return None
    from unimo_ds import inspection

    found = inspection.inspect_path(arguments.path, num_samples=1 if arguments.samples is None else arguments.samples)
    emit(found, inspection.to_text(found), arguments.json)
    return None


def _refuse_ignored(arguments: argparse.Namespace) -> None:
    """Raises UserError: options without effect on what is to be shown."""
    known = {name for taken in _TAKES.values() for name in taken}
    given = [name for name, value in vars(arguments).items() if name in known and value not in (None, [])]
    takes = _TAKES.get(arguments.path, ("samples",) if arguments.html is None else ("html",))
    subject = f"unimo inspect {arguments.path}"
    if arguments.run_dir is not None and "run_dir" in takes:
        takes, subject = tuple(name for name in takes if name not in ("data", "recipe", "set")), f"{subject} --run-dir"
    if arguments.path == "order" and arguments.steps is not None:
        takes, subject = tuple(name for name in takes if name != "step"), f"{subject} --steps"
    if ignored := [f"--{name.replace('_', '-')}" for name in given if name not in takes]:
        raise UserError(f"{subject} has no use for {', '.join(ignored)}; leave it out")


def _inspect_sample(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.viewing.sample_page import sample_number, sample_page

    if arguments.data is None or arguments.html is None:
        raise UserError("unimo inspect sample needs --data DIR and --html OUT")
    corpus = Corpus.open(recipes.with_data(recipes.load(arguments.recipe), arguments.data).data.path)
    number = sample_number(corpus, arguments.sample)
    text = _write_page(arguments.html, sample_page(corpus, number))
    emit({"page": str(arguments.html), "sample": number, "key": corpus.key(number)}, text, arguments.json)


def _write_page(path: Path, page: str) -> str:
    """Returns a sentence that names the file."""
    write_text(path, printable(page))  # a folder's name may not be Unicode
    return f"wrote {path} ({len(page):,} characters)"


def _inspect_batch(arguments: argparse.Namespace) -> None:
    from unimo_ds.data import tokenizer as tokenizers
    from unimo_ds.data.viewing.batch_page import batch_page
    from unimo_ds.data.viewing.inspect_batch import Place, read_step, to_dict, to_text

    config, corpus = _config_and_corpus(arguments)
    tokenizer = tokenizers.load(corpus.tokenizer_path)
    place = Place(arguments.step, arguments.rank, arguments.world_size)
    step = read_step(corpus, config, place, tokenizer)
    found = to_dict(step, place)
    lines = [to_text(found, config)]
    if arguments.html is not None:
        num_samples = 8 if arguments.samples is None else arguments.samples
        lines.append(
            _write_page(arguments.html, batch_page(step, found, config, corpus, tokenizer, num_samples=num_samples))
        )
    emit(found, "\n".join(lines), arguments.json)


def _config_and_corpus(arguments: argparse.Namespace) -> tuple[RunConfig, Corpus]:
    """Settings and data of a run, or those of the command line."""
    from unimo_ds.config_check import check
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.corpus_check import check_corpus

    if arguments.run_dir is not None:
        from unimo_ds.evaluation.checkpoint import CONFIG_FILE, read_config
        from unimo_ds.evaluation.run_paths import from_here

        if not (arguments.run_dir / CONFIG_FILE).is_file():
            raise UserError(f"{arguments.run_dir} is no run: it has no {CONFIG_FILE}")
        config = read_config(arguments.run_dir / CONFIG_FILE)
        if config.finetune is not None:
            raise UserError(
                f"{arguments.run_dir} is a fine-tuning; give the pre-training run whose steps are to be shown"
            )
        cache = config.data.cache_dir or str(arguments.run_dir / "cache")  # the training run's own
        return config, Corpus.open(from_here(config.data.path, arguments.run_dir / CONFIG_FILE), cache_dir=cache)
    if arguments.data is None:
        raise UserError(f"unimo inspect {arguments.path} needs --data DIR, or --run-dir RUN")
    config = config_of(arguments, arguments.data)
    corpus = Corpus.open(config.data.path, cache_dir=config.data.cache_dir)
    config = recipes.fit_to_data(config, corpus)
    check(config)
    check_corpus(corpus, config)
    return config, corpus


def _inspect_order(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.viewing.inspect_order import inspect_order, parse_steps

    steps = parse_steps(arguments.steps or f"{arguments.step}:{arguments.step + 1}")
    config, corpus = _config_and_corpus(arguments)
    result = inspect_order(corpus, config, steps=steps, world_size=arguments.world_size, num_workers=arguments.workers)
    lines = []
    for step in result["steps"]:
        lines.append(f"step {step['step']}: {len(step['global_batch'])} samples")
        lines += [f"  rank {rank}: {' '.join(keys)}" for rank, keys in enumerate(step["ranks"])]
    emit(result, "\n".join(lines), arguments.json)
