"""Textual scene graphs: what a caption speaks of, with the characters that say it, and the protocol of their parsers."""

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
    """A thing or being. Its words are its name alone: "dirt bike", without article and attributes."""

    start: int
    end: int
    """Characters [start, end) of the caption."""
    head: int
    """Where its last word begins."""
    tag: str
    """Penn Treebank tag of its last word: NN, or NNS in the plural."""


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
    """A verb, a preposition, or a verb with its preposition ("sitting on"), between objects or of one alone ("running")."""

    start: int
    end: int
    verb: tuple[int, int] | None
    """Characters of the verb, without particles."""
    preposition: tuple[int, int] | None
    """Characters of the preposition, however many words ("in front of")."""
    tag: str
    """Tag of the verb (VBG, VBZ, ...), or IN."""
    subject: int | None
    target: int | None


@dataclass(frozen=True)
class SceneGraph:
    """Nodes in the order of their words. Indices (`owner`, `subject`, `target`) point into `objects`."""

    text: str
    objects: tuple[Object, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    relations: tuple[Relation, ...] = ()
    names: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) of each named entity."""

    def words(self, node: Object | Attribute | Relation) -> str:
        return self.text[node.start : node.end]


class SceneGraphParser(Protocol):
    """Makes scene graphs. Deterministic: equal captions give equal graphs, in any order and grouping."""

    @property
    def name(self) -> str:
        """What made the graphs, for the record."""
        ...

    def parse(self, captions: Sequence[str]) -> list[SceneGraph]:
        """One graph a caption; an empty one where nothing was understood."""
        ...
