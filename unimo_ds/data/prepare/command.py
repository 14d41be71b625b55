"""Turn raw corpora into data folders, stage by stage. A stage that was interrupted continues when it is run again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from unimo_ds.data.prepare import all_options, formats, worker_options
from unimo_ds.data.prepare.settings import (
    DEFAULT_VOCABULARY,
    ImportSettings,
    PhraseSettings,
    RegionSettings,
    RetrieveSettings,
    RewriteSettings,
)
from unimo_ds.utils import command_line, locations, options
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.printable import for_terminal, printable
from unimo_ds.utils.running import run_command

if TYPE_CHECKING:
    from unimo_ds.data.prepare.report import Report
    from unimo_ds.data.prepare.workers import Workers

_Settings = TypeVar("_Settings")
_EXAMPLE = """example:
  unimo prepare import --kind pairs --images photos.tar --captions captions.tsv --output data/train
  unimo prepare rewrite data/train && unimo prepare verify data/train"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `unimo prepare`. Returns the exit status: 0, 1 if `verify` finds problems, 2 on bad input."""
    parser = ArgumentParser(
        prog="unimo prepare",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return run_command(lambda: run(parser.parse_args(argv)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stages and their options."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    purpose = "import a raw corpus into a data folder, as one more source"
    stage = _stage(stages, "import", purpose, _run_import, _IMPORT_EXAMPLE)
    options.add(stage, ImportSettings)
    worker_options.add(stage)
    stage = _stage(
        stages, "tokenizer", "train a tokenizer on text files or captions", _run_tokenizer, _TOKENIZER_EXAMPLE
    )
    stage.add_argument("files", type=Path, nargs="+", help="text files (of a .tsv, all columns but the first)")
    stage.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    number = "number of tokens (default %(default)s)"
    stage.add_argument("--vocabulary-size", type=int, default=DEFAULT_VOCABULARY, help=number)
    purpose = "store the names and phrases of every text, which training masks as a whole"
    _over_folder(_stage(stages, "phrases", purpose, _run_phrases), PhraseSettings)
    purpose = "store positive and negative rewrites of every caption"
    _over_folder(_stage(stages, "rewrite", purpose, _run_rewrite, _REWRITE_EXAMPLE), RewriteSettings)
    _over_folder(
        _stage(stages, "retrieve", "store related texts and images of every pair", _run_retrieve), RetrieveSettings
    )
    _over_folder(
        _stage(stages, "regions", "recompute the regions from the stored images", _run_regions), RegionSettings
    )
    purpose = "rebuild a folder's indices and manifest from its shards as they are"
    stage = _stage(stages, "pack", purpose, _run_pack)
    stage.add_argument("folder", type=Path, help="data folder")
    stage.add_argument("--tokenizer", type=Path, help="use this tokenizer from now on")
    purpose = "check a folder: exit status 0 if it is good, else 1 and the name of each bad file and sample"
    stage = _stage(stages, "verify", purpose, _run_verify)
    stage.add_argument("folder", metavar="FOLDER", help="data folder or its URL")
    worker_options.add(stage)
    stage = _stage(stages, "all", "everything from raw files to a verified data folder", _run_all, all_options.EXAMPLE)
    all_options.add(stage)
    worker_options.add(stage)
    purpose = "generate the synthetic corpus of `make demo`, or one of another size"
    _add_demo(_stage(stages, "demo", purpose, _run_demo, "unimo prepare demo --output demo_data"))


_IMPORT_EXAMPLE = f"""unimo prepare import --kind texts --input wiki.txt --output data/train
  unimo prepare import --format coco --captions captions_train2017.json --images train2017 --output data/train

formats (--format; the command for each: docs/preparation.md):
{formats.described()}"""
_TOKENIZER_EXAMPLE = "unimo prepare tokenizer wiki.txt captions.tsv --output data/tokenizer --vocabulary-size 16384"
_REWRITE_EXAMPLE = """unimo prepare rewrite data/train --workers 8
  unimo prepare rewrite data/train --translator marian --to-pivot opus-mt-en-de --from-pivot opus-mt-de-en"""


def _stage(
    stages: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int],
    example: str = "",
) -> argparse.ArgumentParser:
    stage = command_line.add_command(stages, name, purpose, run, example or f"unimo prepare {name} data/train")
    stage.add_argument("--json", action="store_true", help="print the result as JSON")
    return stage


def _over_folder(stage: argparse.ArgumentParser, settings: type) -> None:
    """Options of a stage that rewrites the shards of a folder."""
    stage.add_argument("folder", type=Path, help="data folder")
    options.add(stage, settings)
    worker_options.add(stage)


def _add_demo(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--output", type=Path, required=True, help="folder for train/ and held_out/")
    unchanged = argparse.SUPPRESS  # defaults are those of `make demo`
    for name, what in (
        ("pairs", "pairs"),
        ("images", "images"),
        ("texts", "texts"),
        ("held-out", "held-out pairs"),
    ):
        stage.add_argument(
            f"--{name}",
            type=int,
            dest=f"num_{name.replace('-', '_')}",
            default=unchanged,
            metavar="N",
            help=f"number of {what} (default: as in `make demo`)",
        )
    stage.add_argument(
        "--regions",
        choices=("exact", "grid"),
        default=unchanged,
        help="exact: boxes of the drawn objects (default); grid: learned from pixels",
    )
    another = "another seed gives another corpus of the same kind (default 0)"
    stage.add_argument("--seed", type=command_line.seed, default=unchanged, help=another)


def run(arguments: argparse.Namespace) -> int:
    """Execute parsed arguments. Returns the exit status.

    Raises:
        UserError: bad input.
    """
    locations.check_local_options(arguments)
    run_stage: Callable[[argparse.Namespace], int] = arguments.run
    return run_stage(arguments)


def _run_import(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import importing

    settings = ImportSettings(**options.values(ImportSettings, arguments))
    return worker_options.with_workers(
        arguments,
        settings.output,
        lambda workers: _show(arguments, importing.run_import(settings, workers)),
        make=True,
    )


def _show(arguments: argparse.Namespace, report: Report) -> None:
    _print(arguments, vars(report), report.lines())


def _run_all(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import everything

    plan = all_options.plan(arguments)

    def body(workers: Workers) -> None:
        reports = everything.prepare_all(plan, workers)
        lines = [f"{stage}: {line}" for stage, report in reports.items() for line in report.lines()]
        _print(arguments, {stage: vars(report) for stage, report in reports.items()}, lines)

    return worker_options.with_workers(arguments, plan.output, body, make=True)


def _run_tokenizer(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import everything

    made, report = everything.train_tokenizer(
        arguments.files, vocabulary_size=arguments.vocabulary_size, output=arguments.output
    )
    result = {"vocabulary_size": made.vocabulary_size, "fingerprint": made.fingerprint}
    _print(arguments, result, [f"{name}: {value}" for name, value in result.items()] + report.lines())
    return 0


def _run_rewrite(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare.rewriting import rewrite_stage

    return _run_stage(arguments, rewrite_stage.rewrite_folder, RewriteSettings)


def _run_phrases(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import phrases

    return _run_stage(arguments, phrases.phrase_folder, PhraseSettings)


def _run_retrieve(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare.retrieval import retrieve_stage

    return _run_stage(arguments, retrieve_stage.retrieve_folder, RetrieveSettings)


def _run_regions(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import region_extraction

    return _run_stage(arguments, region_extraction.extract_again, RegionSettings)


def _run_stage(
    arguments: argparse.Namespace, stage: Callable[[Path, _Settings, Workers], Report], kind: type[_Settings]
) -> int:
    """Run a stage on an existing folder and print its report."""
    folder, settings = arguments.folder, kind(**options.values(kind, arguments))
    return worker_options.with_workers(
        arguments, folder, lambda workers: _show(arguments, stage(folder, settings, workers))
    )


def _run_pack(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import journal, pack

    with journal.alone_in(arguments.folder):
        made = pack.pack_folder(arguments.folder, tokenizer_path=arguments.tokenizer)
    _print(arguments, {"samples": made.num_samples, **made.totals}, [f"{kind}: {n}" for kind, n in made.totals.items()])
    return 0


def _run_verify(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare.verify_remote import verify_at

    problems: list[str] = []

    def body(workers: Workers) -> None:
        problems.extend(str(problem) for problem in verify_at(arguments.folder, workers=workers))
        _print(arguments, {"problems": problems}, problems or [f"{arguments.folder} is good"])

    return worker_options.with_workers(arguments, None, body) or int(bool(problems))


def _run_demo(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare.scenes import writing

    given = {name: value for name, value in vars(arguments).items() if name not in ("stage", "run", "output", "json")}
    writing.write_demo_corpus(arguments.output, **given)
    result = {name: str(arguments.output / name) for name in ("train", "held_out")}
    _print(arguments, result, [f"{name}: {path}" for name, path in result.items()])
    return 0


def _print(arguments: argparse.Namespace, result: object, lines: Sequence[str]) -> None:
    as_json = arguments.json
    print(printable(json.dumps(result, indent=1, ensure_ascii=False)) if as_json else for_terminal("\n".join(lines)))
