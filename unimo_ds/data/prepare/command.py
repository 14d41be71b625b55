"""Turn raw corpora into data folders, stage by stage. A stage that was interrupted continues when it is run again."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from unimo_ds.data.prepare import all_options, import_options, rewrite_options, worker_options
from unimo_ds.data.prepare.settings import (
    DEFAULT_VOCABULARY,
    CollectionName,
    ImportSettings,
    PhraseSettings,
    RetrieveSettings,
)
from unimo_ds.utils import command_line, locations
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.printable import printable
from unimo_ds.utils.running import run_command

if TYPE_CHECKING:
    from unimo_ds.data.prepare.report import Report
    from unimo_ds.data.prepare.workers import Workers

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
    import_options.add(_stage(stages, "import", purpose, import_options.EXAMPLE))
    _add_tokenizer(_stage(stages, "tokenizer", "train a tokenizer on text files or captions", _TOKENIZER_EXAMPLE))
    purpose = "store the names and phrases of every text, which training masks as a whole"
    rewrite_options.add_phrases(_stage(stages, "phrases", purpose, "unimo prepare phrases data/train"))
    purpose = "store positive and negative rewrites of every caption"
    rewrite_options.add(_stage(stages, "rewrite", purpose, rewrite_options.EXAMPLE))
    for name, purpose in _FOLDER_STAGES.items():
        stage = _stage(stages, name, purpose, f"unimo prepare {name} data/train")
        if name == "verify":
            stage.add_argument("folder", metavar="FOLDER", help="data folder or its URL")
        else:
            stage.add_argument("folder", type=Path, help="data folder")
        stage.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "retrieve":
            stage.add_argument(
                "--number",
                type=int,
                default=RetrieveSettings.number,
                metavar="N",
                help="related texts and images stored for each pair (default %(default)s)",
            )
            stage.add_argument(
                "--approximate",
                nargs="+",
                choices=get_args(CollectionName),
                default=[],
                help="search these through a FAISS index: for millions of images (for texts exact search is faster and better)",
            )
        if name != "pack":
            worker_options.add(stage)
        if name == "regions":
            stage.add_argument(
                "--seed", type=command_line.seed, default=0, help="seed of what is learned from the images (default 0)"
            )
            stage.add_argument("--refit", action="store_true", help="learn the extractor again, from the stored images")
            import_options.add_extractor(stage)
        if name == "pack":
            stage.add_argument("--tokenizer", type=Path, help="use this tokenizer from now on")
    purpose = "everything from raw files to a verified data folder"
    all_options.add(_stage(stages, "all", purpose, all_options.EXAMPLE))
    demo = _stage(
        stages,
        "demo",
        "generate the synthetic corpus of `make demo`, or one of another size",
        "unimo prepare demo --output demo_data",
    )
    demo.add_argument("--output", type=Path, required=True, help="folder for train/ and held_out/")
    unchanged = argparse.SUPPRESS  # defaults are those of `make demo`
    for name in ("pairs", "images", "texts", "held-out"):
        dest = f"num_{name.replace('-', '_')}"
        demo.add_argument(
            f"--{name}",
            type=int,
            dest=dest,
            default=unchanged,
            metavar="N",
            help=f"number of {name.replace('held-out', 'held-out pairs')} (default: as in `make demo`)",
        )
    demo.add_argument(
        "--regions",
        choices=("exact", "grid"),
        default=unchanged,
        help="exact: boxes of the drawn objects (default); grid: learned from pixels",
    )
    demo.add_argument(
        "--seed",
        type=command_line.seed,
        default=unchanged,
        help="another seed gives another corpus of the same kind (default 0)",
    )
    demo.add_argument("--json", action="store_true", help="print the result as JSON")


_TOKENIZER_EXAMPLE = "unimo prepare tokenizer wiki.txt captions.tsv --output data/tokenizer --vocabulary-size 16384"
_FOLDER_STAGES = {
    "retrieve": "store related texts and images of every pair",
    "regions": "recompute the regions from the stored images",
    "pack": "rebuild a folder's indices and manifest from its shards as they are",
    "verify": "check a folder: exit status 0 if it is good, else 1 and the name of each bad file and sample",
}


def _stage(
    stages: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, example: str
) -> argparse.ArgumentParser:
    return stages.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_tokenizer(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("files", type=Path, nargs="+", help="text files (of a .tsv, all columns but the first)")
    stage.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    stage.add_argument(
        "--vocabulary-size", type=int, default=DEFAULT_VOCABULARY, help="number of tokens (default %(default)s)"
    )
    stage.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Execute parsed arguments. Returns the exit status.

    Raises:
        UserError: bad input.
    """
    locations.check_local_options(arguments)
    return {
        "import": _run_import,
        "all": _run_all,
        "tokenizer": _run_tokenizer,
        "rewrite": _run_rewrite,
        "phrases": _run_phrases,
        "retrieve": _run_retrieve,
        "regions": _run_regions,
        "pack": _run_pack,
        "verify": _run_verify,
        "demo": _run_demo,
    }[arguments.stage](arguments)


def _run_import(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import importing

    names = {field.name for field in dataclasses.fields(ImportSettings)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    wanted = ImportSettings(**values)
    return worker_options.with_workers(
        arguments,
        wanted.output,
        lambda workers: _show(arguments, importing.run_import(wanted, workers)),
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

    settings = rewrite_options.settings(arguments)
    return _run_stage(arguments, lambda workers: rewrite_stage.rewrite_folder(arguments.folder, settings, workers))


def _run_phrases(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import phrases

    settings = PhraseSettings(arguments.parser, arguments.parser_path)
    return _run_stage(arguments, lambda workers: phrases.phrase_folder(arguments.folder, settings, workers))


def _run_retrieve(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare.retrieval import retrieve_stage

    settings = RetrieveSettings(arguments.number, tuple(arguments.approximate))
    return _run_stage(arguments, lambda workers: retrieve_stage.retrieve_folder(arguments.folder, settings, workers))


def _run_regions(arguments: argparse.Namespace) -> int:
    from unimo_ds.data.prepare import region_extraction

    return _run_stage(
        arguments,
        lambda workers: region_extraction.extract_again(
            arguments.folder,
            refit=arguments.refit,
            extractor_path=arguments.extractor,
            weights=arguments.weights,
            image_side=arguments.image_side,
            patch_side=arguments.patch_side,
            seed=arguments.seed,
            workers=workers,
        ),
    )


def _run_stage(arguments: argparse.Namespace, stage: Callable[[Workers], Report]) -> int:
    """Run a stage on an existing folder and print its report."""
    return worker_options.with_workers(arguments, arguments.folder, lambda workers: _show(arguments, stage(workers)))


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

    given = {name: value for name, value in vars(arguments).items() if name not in ("stage", "output", "json")}
    writing.write_demo_corpus(arguments.output, **given)
    result = {name: str(arguments.output / name) for name in ("train", "held_out")}
    _print(arguments, result, [f"{name}: {path}" for name, path in result.items()])
    return 0


def _print(arguments: argparse.Namespace, result: object, lines: Sequence[str]) -> None:
    said = json.dumps(result, indent=1, ensure_ascii=False) if arguments.json else "\n".join(lines)
    print(printable(said))
