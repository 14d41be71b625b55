"""Settings as options of a command: each field of a dataclass that says what it is for, read as its type says."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import types
import typing
from collections.abc import Collection
from typing import Any


def option(default: Any = dataclasses.MISSING, purpose: str = "", **details: Any) -> Any:
    """A field of a dataclass that is also an option; without a default it is required.

    details: arguments of `add_argument` besides those that follow from name, type and default; `names`: another name, or several.
    """
    return dataclasses.field(default=default, metadata={"help": purpose, **details})


def add(parser: argparse._ActionsContainer, settings: type, *, leave_out: Collection[str] = ()) -> None:
    """Add the options of a dataclass, its own before those that it inherits."""
    hints = typing.get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings) if field.metadata}
    for kind in settings.__mro__:
        for name in inspect.get_annotations(kind):
            if name in fields and name not in leave_out:
                _add(parser, fields[name], hints[name])


def values(settings: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a dataclass that were added, by name, as parsed."""
    names = [field.name for field in dataclasses.fields(settings) if field.metadata and field.name in arguments]
    given = {name: getattr(arguments, name) for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _add(parser: argparse._ActionsContainer, field: dataclasses.Field[Any], hint: Any) -> None:
    details = {"dest": field.name, "default": field.default, **field.metadata}
    names = details.pop("names", [f"--{field.name.replace('_', '-')}"])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        details["nargs"], hint = "+", typing.get_args(hint)[0]
    if hint is bool:
        details["action"] = "store_true"
    elif typing.get_origin(hint) is typing.Literal:
        details["choices"] = typing.get_args(hint)
    else:
        details.setdefault("type", hint)
    if field.default is dataclasses.MISSING:
        details = {"required": True, **details, "default": None}
    elif field.default not in (None, (), False) or (field.default == 0 and hint is int):
        details["help"] += " (default %(default)s)"
    parser.add_argument(*names, **details)
