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
    _add_number(stage, "negatives", "negatives stored for each caption and level")
    _add_number(stage, "positives", "positives stored for each caption: other captions of its image")
    stage.add_argument(
        "--learn-from",
        type=Path,
        metavar="FOLDER",
        help="data folder from which replacement words are learned (default: this one)",
    )
    stage.add_argument("--translator", choices=get_args(TranslatorName), help="add back-translated positives")
    stage.add_argument(
        "--to-pivot",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of models into the pivot languages, one for each",
    )
    stage.add_argument(
        "--from-pivot",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of the models back, in the same order",
    )
    stage.add_argument(
        "--pivots",
        nargs="+",
        default=[],
        metavar="LANGUAGE",
        help="pivot languages of apertium (default: all installed)",
    )
    _add_number(stage, "back_translations", "back-translations added to each caption at most")
    _add_number(stage, "translation_batch", "sentences translated at a time")
    _add_number(stage, "beams", "beams of the translation models")
    _add_number(stage, "seed", "seed of random choices")
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
        help="parser of captions (default %(default)s; docs/rewriting.md)",
    )
    stage.add_argument(
        "--parser-path", type=Path, metavar="DIR", help="folder with the parser's weights (factual) or pipeline (spacy)"
    )
    stage.add_argument("--json", action="store_true", help="print the result as JSON")
    worker_options.add(stage)


def settings(arguments: argparse.Namespace) -> RewriteSettings:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(RewriteSettings):
        value = getattr(arguments, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return RewriteSettings(**values)
