"""`--set dotted.key=value` changes one field of a configuration; the error for an unknown key names the nearest one."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from unimo_ds.config import RunConfig
from unimo_ds.utils.errors import UserError, nearest_name

T = TypeVar("T")
_LARGEST = 2**63
"""Positions and bytes are counted in 64 bits."""


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with each `dotted.key=value` applied in turn.

    Raises:
        UserError: unknown key (names the nearest one), ill-typed value, or text without `=`.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"--set {override!r} has no '='; write --set dotted.key=value")
        path = key.strip().split(".")
        if len(path) == 1 and not hasattr(config, path[0]) and (places := _keys_called(path[0], config)):
            raise UserError(f"unknown key {path[0]!r}; did you mean {' or '.join(map(repr, places))}?")
        config = _replace(config, path, text.strip(), whole_key=key.strip())
    return config


def key_of(override: str) -> str:
    """`dotted.key` of `dotted.key=value`."""
    return override.partition("=")[0].strip()


def _keys_called(name: str, config: RunConfig) -> list[str]:
    """Dotted keys of the groups that have a key of this name."""
    groups = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return [
        f"{group}.{name}"
        for group, value in groups.items()
        if dataclasses.is_dataclass(value) and name in {field.name for field in dataclasses.fields(value)}
    ]


def _replace(node: T, path: list[str], text: str, *, whole_key: str) -> T:
    name, *rest = path
    hints = typing.get_type_hints(type(node))
    if name not in hints:
        raise UserError(f"unknown key {whole_key!r}{nearest_name(name, hints)}")
    value = getattr(node, name)
    if isinstance(value, Mapping):
        if not rest and text.lower() != "none":
            raise UserError(f"{whole_key!r} names a table; write --set {name}.ENTRY=value, or {name}=none to empty it")
        of_entries = typing.get_args(hints[name])[1]
        changed: Any = {**value, ".".join(rest): _parse(of_entries, text, whole_key)} if rest else {}
    elif dataclasses.is_dataclass(value):
        if not rest:
            raise UserError(f"{whole_key!r} is a group of keys{nearest_name('', typing.get_type_hints(type(value)))}")
        changed = _replace(value, rest, text, whole_key=whole_key)
    else:
        if rest:
            what = "this run has no such group" if value is None else f"{name!r} is a single value"
            raise UserError(f"unknown key {whole_key!r}: {what}")
        changed = _parse(hints[name], text, whole_key)
    return dataclasses.replace(node, **{name: changed})  # type: ignore[type-var]


def _parse(annotation: Any, text: str, key: str) -> Any:
    """`text` as a value of the annotated type."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        choices = typing.get_args(annotation)
        if text not in choices:
            raise UserError(f"{key}={text!r} is not one of {', '.join(choices)}")
        return text
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        (inner,) = [part for part in typing.get_args(annotation) if part is not type(None)]
        if dataclasses.is_dataclass(inner):
            raise UserError(f"{key!r} is a group of keys, and this run has no such group")
        return _parse(inner, text, key)
    if origin is tuple:
        parts = text.strip("()[]").split(",")
        kinds = typing.get_args(annotation)
        if Ellipsis in kinds:
            if text.lower() == "none" or not parts[-1].strip():  # empty, or the trailing comma of a 1-tuple
                parts.pop()
            kinds = kinds[:1] * len(parts)
        if len(parts) != len(kinds):
            raise UserError(f"{key} takes {len(kinds)} values separated by commas, not {text!r}")
        return tuple(_parse(kind, part.strip(), key) for kind, part in zip(kinds, parts, strict=True))
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{key} takes true or false, not {text!r}")
        return text.lower() == "true"
    if annotation is str:
        return text
    try:
        value = annotation(text)
    except ValueError:
        raise UserError(f"{key} takes {annotation.__name__}, not {text!r}") from None
    if not abs(value) < _LARGEST:
        raise UserError(f"{key} takes a number between -2^63 and 2^63, not {text!r}")
    return value
