"""JSON files that this program writes and people may edit: read as a given type, or refused in one sentence."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from unimo_ds.utils.errors import UserError, nearest_name

_LARGEST = 2**63 - 1


class Partial:
    """Base of a dataclass that describes part of an object: keys that are not its fields are passed over, not refused."""


def read(path: Path, hint: Any, *, cure: str = "restore it") -> Any:
    """The file's content as the annotated type: dataclasses, numbers, strings, and tuples, lists and dictionaries of them.

    cure: what to do about a file that was changed or damaged.

    Raises:
        UserError: unreadable, not JSON in UTF-8, or refused by `typed`; names the file, the place in it and the cure.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        return typed(hint, parsed(content), where=str(path))
    except UserError as error:
        raise UserError(f"{error}; {cure}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({str(error).splitlines()[0]}); {cure}") from None


def parsed(content: bytes | str) -> Any:
    """`json.loads`. May raise ValueError, also for nesting that is too deep."""
    try:
        return json.loads(content if isinstance(content, str) else content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def typed(hint: Any, value: Any, *, where: str) -> Any:
    """`value` (from JSON) as the annotated type, strictly: a missing key takes its field's default, an unknown one is an error
    (but see `Partial`).

    Numbers are finite and fit into 64 bits; an integer may stand for a float, otherwise types must match.

    Raises:
        UserError: naming the place.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        *others, last = (part for part in arguments if part is not types.NoneType)
        for part in others:  # annotations name int before float
            with contextlib.suppress(UserError):
                return typed(part, value, where=where)
        return typed(last, value, where=where)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return _object(hint, value, where)
    elif origin in (tuple, list, collections.abc.Sequence):
        fixed = origin is tuple and Ellipsis not in arguments
        if isinstance(value, list) and (not fixed or len(value) == len(arguments)):
            kinds = arguments if fixed else (arguments[0],) * len(value)
            items = (
                typed(one, item, where=f"{where}[{n}]") for n, (one, item) in enumerate(zip(kinds, value, strict=True))
            )
            return list(items) if origin is list else tuple(items)
    elif origin in (dict, collections.abc.Mapping):
        if isinstance(value, dict):
            return {name: typed(arguments[1], item, where=f"{where}: {name}") for name, item in value.items()}
    elif hint is float:
        if (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= _LARGEST):
            return float(value)
    elif type(value) is hint and (hint is not int or abs(value) <= _LARGEST):
        return value
    raise UserError(f"{where} has {_shown(value)} where {_named(hint)} belongs")


def _object(kind: type, value: dict[str, Any], where: str) -> Any:
    hints = _type_hints(kind)
    if issubclass(kind, Partial):
        value = {name: item for name, item in value.items() if name in hints}
    for name in value:
        if name not in hints:
            raise UserError(f"{where} has unknown key {name!r}{nearest_name(name, hints)}")
    for field in dataclasses.fields(kind):
        if field.name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} has no {field.name!r}")
    return kind(**{name: typed(hints[name], item, where=f"{where}: {name}") for name, item in value.items()})


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _named(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if dataclasses.is_dataclass(hint) or origin in (dict, collections.abc.Mapping):
        return "an object"
    if origin is tuple and Ellipsis not in typing.get_args(hint):
        return f"a list of {len(typing.get_args(hint))}"
    if origin is not None:
        return "a list"
    return {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}[hint]
