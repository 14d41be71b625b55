"""Scene graphs as JSON: one task parses them, others read them."""

from __future__ import annotations

from typing import Any

from unimo_ds.data.prepare.rewriting.scene_graph.graph import Attribute, AttributeKind, Object, Relation, SceneGraph


def to_record(graph: SceneGraph) -> list[Any]:
    """The graph as JSON lists."""
    return [
        graph.text,
        [[one.start, one.end, one.head, one.tag] for one in graph.objects],
        [[one.start, one.end, one.kind.value, one.tag, one.owner] for one in graph.attributes],
        [[one.start, one.end, one.verb, one.preposition, one.tag, one.subject, one.target] for one in graph.relations],
        list(graph.names),
    ]


def from_record(record: list[Any]) -> SceneGraph:
    """Inverse of `to_record`."""
    text, objects, attributes, relations, names = record
    return SceneGraph(
        text,
        tuple(Object(*one) for one in objects),
        tuple(Attribute(start, end, AttributeKind(kind), tag, owner) for start, end, kind, tag, owner in attributes),
        tuple(
            Relation(start, end, _span(verb), _span(preposition), tag, subject, target)
            for start, end, verb, preposition, tag, subject, target in relations
        ),
        tuple((start, end) for start, end in names),
    )


def _span(value: list[int] | None) -> tuple[int, int] | None:
    return None if value is None else (value[0], value[1])
