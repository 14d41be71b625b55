"""Scene graphs from the dependency parse of a spaCy pipeline in a local folder (such as an unpacked en_core_web_sm).

After Wang et al. (2018): nouns are objects, their modifiers attributes; verbs and prepositions relate their dependents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.rewriting.scene_graph.graph import (
    Attribute,
    AttributeKind,
    Object,
    Relation,
    SceneGraph,
    in_order,
)
from unimo_ds.data.prepare.rewriting.scene_graph.names import names_in
from unimo_ds.utils.errors import UserError

_BATCH = 256
_SUBJECTS = ("nsubj", "nsubjpass", "nsubj:pass")
_TARGETS = ("dobj", "obj", "attr")


class SpacyParser:
    """One pipeline. It needs a tagger and a dependency parser with spaCy's English labels (Penn tags, ClearNLP)."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: spaCy or the pipeline is missing, or the pipeline has no tagger or parser.
        """
        try:
            import spacy
        except ImportError:
            raise UserError("--parser spacy needs the package: pip install spacy") from None
        try:
            self._pipeline: Any = spacy.load(folder)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"no spaCy pipeline in {folder}: {str(error).strip().splitlines()[0]}") from None
        missing = {"tagger", "parser"} - set(self._pipeline.pipe_names)
        if missing:
            raise UserError(
                f"the spaCy pipeline in {folder} has no {' and no '.join(sorted(missing))}; take one that has"
            )

    def parse(self, captions: Sequence[str]) -> list[SceneGraph]:
        return [graph_of(document) for document in self._pipeline.pipe(captions, batch_size=_BATCH)]


def graph_of(document: Any) -> SceneGraph:
    """The graph of a tagged and parsed document."""
    heads = [token for token in document if token.tag_.startswith("NN") and token.dep_ != "compound"]
    number_of = {token.i: number for number, token in enumerate(heads)}
    attributes, relations = in_order(_attributes(document, number_of)), in_order(_relations(document, number_of))
    names = tuple((one.start_char, one.end_char) for one in document.ents) or names_in(document.text)
    return SceneGraph(document.text, tuple(map(_object, heads)), attributes, relations, names)


def _end(token: Any) -> int:
    end: int = token.idx + len(token)
    return end


def _object(head: Any) -> Object:
    first = head
    while first.i > 0 and head.doc[first.i - 1].dep_ == "compound" and head.doc[first.i - 1].head.i >= first.i:
        first = head.doc[first.i - 1]
    return Object(first.idx, _end(head), head.idx, "NNS" if head.tag_.endswith("S") else "NN")


def _attributes(document: Any, number_of: dict[int, int]) -> Iterator[Attribute]:
    for token in document:
        owner = None
        if token.dep_ in ("amod", "nummod"):
            owner = token.head
        elif token.dep_ == "conj" and token.head.dep_ == "amod":
            owner = token.head.head
        elif token.dep_ == "acomp":
            owner = _subject(token.head)
        if owner is not None and owner.i in number_of:
            kind = AttributeKind.NUMBER if token.tag_ == "CD" else AttributeKind.QUALITY
            yield Attribute(token.idx, _end(token), kind, token.tag_, number_of[owner.i])


def _relations(document: Any, number_of: dict[int, int]) -> Iterator[Relation]:
    for token in document:
        if token.tag_.startswith("VB") and token.dep_ not in ("aux", "auxpass", "amod", "compound"):
            yield from _of_verb(token, number_of)
        elif token.dep_ == "prep" and token.head.i in number_of:
            yield from _of_preposition(token, token.head, number_of)


def _of_verb(verb: Any, number_of: dict[int, int]) -> Iterator[Relation]:
    subject = _subject(verb)
    who = None if subject is None else number_of.get(subject.i)
    span = (verb.idx, _end(verb))
    targets = [child for child in verb.children if child.dep_ in _TARGETS and child.i in number_of]
    places = [child for child in verb.children if child.dep_ == "prep"]
    for target in targets:
        yield Relation(*span, span, None, verb.tag_, who, number_of[target.i])
    if targets:
        for place in places:
            yield from _of_preposition(place, subject, number_of)
        return
    found = False
    for place in places:
        start, end, target = _reach(place)
        if target is not None and target.i in number_of:
            found = True
            yield Relation(span[0], end, span, (start, end), verb.tag_, who, number_of[target.i])
    if not found and not any(child.dep_ == "acomp" for child in verb.children):
        yield Relation(*span, span, None, verb.tag_, who, None)


def _of_preposition(place: Any, subject: Any, number_of: dict[int, int]) -> Iterator[Relation]:
    start, end, target = _reach(place)
    if target is not None and target.i in number_of:
        who = None if subject is None else number_of.get(subject.i)
        yield Relation(start, end, None, (start, end), "IN", who, number_of[target.i])


def _reach(place: Any) -> tuple[int, int, Any]:
    """Characters of a preposition, and its object; in "out of" and "next to" one preposition depends on the other."""
    start, last = place.idx, place
    while True:
        below = [child for child in last.children if child.dep_ in ("prep", "pcomp") and child.i == last.i + 1]
        if not below:
            break
        last = below[0]
    target = next((child for child in last.children if child.dep_ in ("pobj", "obj")), None)
    return start, _end(last), target


def _subject(verb: Any) -> Any:
    """The verb's subject: its own, the noun it modifies, or that of the verb it depends on."""
    for child in verb.children:
        if child.dep_ in _SUBJECTS:
            return child
    if verb.dep_ in ("acl", "relcl"):
        return verb.head
    if verb.dep_ in ("conj", "advcl", "xcomp") and verb.head.i != verb.i:
        return _subject(verb.head)
    return None
