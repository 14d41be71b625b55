"""Options of `unimo prepare rewrite` and `unimo prepare phrases`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_args

from unimo_ds.data.prepare import worker_options
from unimo_ds.data.prepare.settings import ParserName, RewriteSettings, TranslatorName

EXAMPLE = """unimo prepare rewrite data/train --workers 8
  unimo prepare rewrite data/train --translator marian --to-pivot opus-mt-en-de --from-pivot opus-mt-de-en"""


def add(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("folder", type=Path, help="data folder")
    _add_number(stage, "negatives", "stored per caption and level")
    _add_number(stage, "positives", "other captions of the image stored per caption")
    stage.add_argument("--learn-from", type=Path, help="data folder that teaches which words are alternatives")
    stage.add_argument("--translator", choices=get_args(TranslatorName), help="adds back-translated positives")
    stage.add_argument("--to-pivot", type=Path, nargs="+", default=[], help="model folders, a pivot language each")
    stage.add_argument("--from-pivot", type=Path, nargs="+", default=[], help="model folders of the way back")
    stage.add_argument("--pivots", nargs="+", default=[], help="languages of apertium (default: all installed)")
    _add_number(stage, "back_translations", "added per caption at most")
    _add_number(stage, "translation_batch", "sentences a model translates at a time")
    _add_number(stage, "beams", "of the models' beam search")
    _add_number(stage, "seed", "of what is drawn")
    _add_parser(stage)


def add_phrases(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("folder", type=Path, help="data folder")
    _add_parser(stage)


def _add_number(stage: argparse.ArgumentParser, field: str, purpose: str) -> None:
    option = f"--{field.replace('_', '-')}"
    stage.add_argument(
        option, type=int, default=getattr(RewriteSettings, field), help=f"{purpose} (default %(default)s)"
    )


def _add_parser(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--parser",
        choices=get_args(ParserName),
        default=RewriteSettings.parser,
        help="of captions (default %(default)s)",
    )
    stage.add_argument("--parser-path", type=Path, help="weights (factual) or pipeline (spacy) of the parser")
    stage.add_argument("--json", action="store_true", help="print the result as JSON")
    worker_options.add(stage)


def settings(arguments: argparse.Namespace) -> RewriteSettings:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(RewriteSettings):
        value = getattr(arguments, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return RewriteSettings(**values)
