"""A whole corpus as one value: what to import, rewrite and retrieve. `unimo prepare all --config FILE` reads it from TOML:

    output = "data/train"
    vocabulary_size = 16384                 # or: tokenizer = "roberta-base"
    keep_images = true

    [[import]]                              # one for each corpus; keys are the options of `unimo prepare import`
    format = "coco"
    captions = "captions_train2017.json"
    images = "train2017"
    exclude = "dataset_coco.json"

    [[import]]
    kind = "texts"
    input = ["books.txt", "wiki.txt"]

    [phrases]                               # options of that stage; `phrases = false` skips it; the same for other stages
    parser = "spacy"
    parser_path = "en_core_web_sm"

    [rewrite]
    negatives = 10
    translator = "marian"
    to_pivot = ["opus-mt-en-de", "opus-mt-en-fr"]
    from_pivot = ["opus-mt-de-en", "opus-mt-fr-en"]

    [retrieve]
    number = 100

Paths are relative to the file.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.settings import (
    SHARED,
    ImportSettings,
    PhraseSettings,
    RetrieveSettings,
    RewriteSettings,
    Shared,
    source_name,
)
from unimo_ds.data.vision.extractors import KINDS
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError, nearest_name

_NOT_PER_IMPORT = (*SHARED, "output", "like", "replace")
"""Set once for the whole corpus, but `like` and `replace`, which are not allowed at all."""


@dataclass(frozen=True)
class Plan(Shared):
    """Settings of `prepare_all`."""

    output: Path
    imports: tuple[ImportSettings, ...]
    phrases: PhraseSettings | None = field(default_factory=PhraseSettings)
    """None: skip the stage; the same below."""
    rewrite: RewriteSettings | None = field(default_factory=RewriteSettings)
    retrieve: RetrieveSettings | None = field(default_factory=RetrieveSettings)


def read_plan(path: Path) -> Plan:
    """
    Raises:
        UserError: no such file, not TOML, an unknown key or an ill-typed value; the message names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read --config {path}: {error}") from None
    imports = content.pop("import", None)
    if not isinstance(imports, list) or not imports or not all(isinstance(one, dict) for one in imports):
        raise UserError(f"{path} has no [[import]]; name at least one corpus")
    values: dict[str, Any] = {}
    for stage in ("phrases", "rewrite", "retrieve"):
        options = content.pop(stage, {})
        if options is not False and not isinstance(options, dict):
            raise UserError(f"{path}: {stage} is either a table of options or false")
        values[stage] = options if isinstance(options, dict) else None
    hints = typing.get_type_hints(Plan)
    known = {name: hints[name] for name in hints if name not in ("imports", "phrases", "rewrite", "retrieve")}
    values |= _typed(content, known, path.parent, str(path))
    for stage, made, shared in (
        ("phrases", PhraseSettings, {}),
        ("rewrite", RewriteSettings, {"seed": values.get("seed", 0)}),
        ("retrieve", RetrieveSettings, {}),
    ):
        if values[stage] is not None:
            options = _typed(values[stage], typing.get_type_hints(made), path.parent, f"{path}, {stage}")
            values[stage] = made(**{**shared, **options})
    if "output" not in values:
        raise UserError(f"{path} has no output; name the data folder to make")
    hints = {name: hint for name, hint in typing.get_type_hints(ImportSettings).items() if name not in _NOT_PER_IMPORT}
    settings = [
        ImportSettings(
            **{"kind": None, "output": values["output"], **_typed(one, hints, path.parent, f"{path}, import {i}")}
        )
        for i, one in enumerate(imports, start=1)
    ]
    return Plan(**values, imports=named(settings))


def named(settings: list[ImportSettings]) -> tuple[ImportSettings, ...]:
    """The imports, each with its own name: numbers distinguish files of the same name in different folders."""
    found: list[ImportSettings] = []
    for number, one in enumerate(settings):
        found.append(one if one.source else dataclasses.replace(one, source=f"{number}_{source_name(one)}"))
    names = [source_name(one) for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two imports are named {twice!r}; give each a source of its own")
    return tuple(found)


def _typed(values: Mapping[str, Any], hints: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The values converted to their types: paths relative to `folder`, single values wrapped where a list is expected."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = {"split": "splits"}.get(name, name)
        if key not in hints:
            raise UserError(f"{where} has unknown key {name!r}{nearest_name(name, hints)}")
        is_kind = name == "extractor" and value in KINDS
        found[key] = Path(value) if is_kind else _as(hints[key], value, folder, f"{where}: {name}")
    return found


def _as(hint: Any, value: Any, folder: Path, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        values = value if isinstance(value, list) else [value]
        return tuple(_as(arguments[0], one, folder, where) for one in values)
    if origin is types.UnionType or origin is typing.Union:
        return _as(next(one for one in arguments if one is not type(None)), value, folder, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}, not one of {', '.join(map(str, arguments))}")
        return value
    if hint is Path and isinstance(value, str) and value:
        locations.check_local(value)
        return folder / Path(value).expanduser()
    if hint in (str, int, bool) and type(value) is hint and (hint is not int or abs(value) < 2**63):
        return value
    raise UserError(f"{where} has an ill-typed value {value!r}")
