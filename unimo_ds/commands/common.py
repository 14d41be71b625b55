"""Shared by the commands: parsers, the recipe's options, results as text or JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from unimo_ds import recipes
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import for_terminal

if TYPE_CHECKING:
    from unimo_ds.config import RunConfig

_TO_STDOUT = "-"


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const=_TO_STDOUT,
        metavar="OUT",
        help="print the result as JSON, or write it to the file OUT",
    )


def progress_beside_json(target: str | None) -> contextlib.redirect_stdout[TextIO]:
    """A context in which what is printed goes to stderr, if stdout is kept for the JSON."""
    return contextlib.redirect_stdout(sys.stderr if target == _TO_STDOUT else sys.stdout)


def emit(result: dict[str, Any], text: str, target: str | None) -> None:
    """Print the text, or with `--json` the result as JSON; with a file name, print the text and write the JSON file."""
    if target == _TO_STDOUT:
        print(json.dumps(_plain(result), indent=2))
        return
    # Print first: hours of work must not be lost to a bad file.
    print(for_terminal(text), flush=True)
    if target is not None:
        write_text(Path(target), json.dumps(_plain(result), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """In UTF-8, with the folders above.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """With null for nan and infinities, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def add_recipe(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    parser.add_argument("--recipe", required=required, default="demo", help=f"one of {', '.join(recipes.NAMES)}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field of the recipe, as in training"
    )


def config_of(arguments: argparse.Namespace, data: str | None) -> RunConfig:
    from unimo_ds.config_check import check
    from unimo_ds.overrides import apply_overrides

    config = apply_overrides(recipes.load(arguments.recipe), arguments.set)
    if data is not None:
        config = recipes.without_unread(recipes.with_data(config, data))
    check(config)
    return config
