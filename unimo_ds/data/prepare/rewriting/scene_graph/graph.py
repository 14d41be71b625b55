"""Textual scene graphs: what a caption mentions, with character ranges, and the protocol of their parsers."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class AttributeKind(enum.Enum):
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


class SceneGraphParser(Protocol):
    """Makes scene graphs. Deterministic: equal captions give equal graphs, however they are ordered and grouped."""

    @property
    def name(self) -> str:
        """Name of the parser, for records."""
        ...

    def parse(self, captions: Sequence[str]) -> list[SceneGraph]:
        """One graph per caption, empty if nothing was understood."""
        ...
