"""Parsers by name."""

from __future__ import annotations

import functools
from pathlib import Path

from unimo_ds.data.prepare.rewriting.scene_graph import rules
from unimo_ds.data.prepare.rewriting.scene_graph.graph import Parse
from unimo_ds.utils.errors import UserError


def check(name: str, path: Path | None) -> None:
    """
    Raises:
        UserError: a parser lacks the path it needs, or has one it does not need; the path does not exist.
    """
    if name == "rules" and path is not None:
        raise UserError("--parser-path is for --parser factual or spacy; the rules need no weights")
    if name != "rules" and path is None:
        raise UserError(f"--parser {name} needs --parser-path, the folder of its weights")
    if path is not None and not path.exists():
        raise UserError(f"--parser-path {path} does not exist")


@functools.lru_cache(maxsize=1)
def load(name: str, path: Path | None) -> Parse:
    """The parser, loaded once per process.

    Raises:
        UserError: its weights or its package are missing.
    """
    check(name, path)
    if name == "factual" and path is not None:
        from unimo_ds.data.prepare.rewriting.scene_graph.factual import FactualParser

        return FactualParser(path).parse
    if name == "spacy" and path is not None:
        from unimo_ds.data.prepare.rewriting.scene_graph.spacy_parser import SpacyParser

        return SpacyParser(path).parse
    return rules.parse
