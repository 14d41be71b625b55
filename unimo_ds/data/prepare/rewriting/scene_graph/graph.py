"""Textual scene graphs: what a caption mentions, with character ranges."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar


class AttributeKind(enum.StrEnum):
    QUALITY = "quality"
    NUMBER = "number"
    """Two, several, a group of."""


@dataclass(frozen=True)
class Object:
    """A thing or being. Its range covers only the name: "dirt bike", without article and attributes."""

    start: int
    end: int
    """Characters [start, end) of the caption."""
    head: int
    """Start of its last word."""
    tag: str
    """Penn Treebank tag of its last word: NN, or NNS for a plural."""


@dataclass(frozen=True)
class Attribute:
    start: int
    end: int
    kind: AttributeKind
    tag: str
    owner: int | None
    """Index of its object."""


@dataclass(frozen=True)
class Relation:
    """A verb, a preposition, or both ("sitting on"), between two objects or of a single one ("running")."""

    start: int
    end: int
    verb: tuple[int, int] | None
    """Characters of the verb, without particles."""
    preposition: tuple[int, int] | None
    """Characters of the preposition, which may have several words ("in front of")."""
    tag: str
    """Tag of the verb (VBG, VBZ, ...), or IN."""
    subject: int | None
    target: int | None


@dataclass(frozen=True)
class SceneGraph:
    """Nodes in text order. `owner`, `subject` and `target` are indices into `objects`."""

    text: str
    objects: tuple[Object, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    relations: tuple[Relation, ...] = ()
    names: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) of each named entity."""

    def words(self, node: Object | Attribute | Relation) -> str:
        return self.text[node.start : node.end]


_Node = TypeVar("_Node", Attribute, Relation)
Parse = Callable[[Sequence[str]], list[SceneGraph]]
"""A parser: one graph per caption, empty if nothing was understood. Equal captions give equal graphs, in any order and group."""


def in_order(nodes: Iterable[_Node]) -> tuple[_Node, ...]:
    """The nodes by their start in the text."""
    return tuple(sorted(nodes, key=lambda one: one.start))


def from_json(content: list[Any]) -> SceneGraph:
    """Inverse of `dataclasses.astuple`, whose tuples JSON stores as lists."""
    text, objects, attributes, relations, names = content
    return SceneGraph(
        text,
        tuple(Object(*one) for one in objects),
        tuple(Attribute(start, end, AttributeKind(kind), *rest) for start, end, kind, *rest in attributes),
        tuple(
            Relation(start, end, _span(verb), _span(preposition), *rest)
            for start, end, verb, preposition, *rest in relations
        ),
        tuple((start, end) for start, end in names),
    )


def _span(value: list[int] | None) -> tuple[int, int] | None:
    return None if value is None else (value[0], value[1])
