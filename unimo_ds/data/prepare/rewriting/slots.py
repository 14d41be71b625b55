"""Places in a caption where a word or phrase may be replaced by another of the same form.

Replacements must share the slot's group, so that the grammar stays correct: for nouns number, article and animacy, for verbs
form and what follows ("holding a", "sitting on", "running ."); verbs and prepositions never mix.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from unimo_ds.data.prepare.rewriting.scene_graph import tagging, wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.graph import Attribute, AttributeKind, Object, Relation, SceneGraph
from unimo_ds.data.prepare.rewriting.scene_graph.lists import words
from unimo_ds.data.schema import Level

_EXACT_NUMBERS = words("two three four five six seven eight nine ten")
_SPATIAL = words("""
in on at near over under above below behind beside between among through across into onto off from along around against
toward towards inside beneath underneath past atop alongside up down by
""")
_INDEFINITE, _DEFINITE, _BARE = "a", "the", ""
_NOTHING = ""


@dataclass(frozen=True)
class Slot:
    level: Level
    """WORD or PHRASE."""
    group: tuple[str, ...]
    text: str
    """Its words, in lower case."""
    start: int
    end: int
    """Characters [start, end) of the caption."""
    part: str
    """n, v, a as in WordNet; p: preposition, #: number."""
    head: str
    """The word that determines what may replace it: the noun, the verb."""
    context: tuple[str, str, str, str]
    """The words before and after it, and two that it depends on: for a noun the relation to it and the verb it is the subject
    of, for an attribute its noun, for a relation target and subject. Empty if there is none."""
    around: tuple[str, str, str, str]
    """The two words before and the two after it."""


def find(graph: SceneGraph) -> list[Slot]:
    """All slots of a caption, from left to right."""
    return _Finder(graph).find()


class _Finder:
    def __init__(self, graph: SceneGraph) -> None:
        self.graph = graph
        self.tokens = tagging.tokenize(graph.text)
        self.starts = [start for start, _, _ in self.tokens]
        self.led_by: dict[int, str] = {}
        self.acts: dict[int, str] = {}
        for relation in graph.relations:
            said = graph.words(relation).lower()
            if relation.target is not None:
                self.led_by.setdefault(relation.target, said)
            if relation.subject is not None and relation.verb:
                self.acts.setdefault(relation.subject, said)

    def find(self) -> list[Slot]:
        owned: dict[int, list[Attribute]] = {}
        found: list[Slot] = []
        for attribute in self.graph.attributes:
            found += self._attribute(attribute)
            if attribute.owner is not None and attribute.kind is AttributeKind.QUALITY:
                owned.setdefault(attribute.owner, []).append(attribute)
        for index, node in enumerate(self.graph.objects):
            found += self._object(index, node, owned.get(index, []))
        for relation in self.graph.relations:
            found += self._relation(relation)
        return sorted(found, key=lambda slot: (slot.start, slot.end, slot.level))

    def _slot(
        self,
        level: Level,
        group: tuple[str, ...],
        start: int,
        end: int,
        part: str,
        head: str,
        on: str,
        who: str = _NOTHING,
    ) -> Slot:
        first, last = bisect_right(self.starts, start) - 1, bisect_left(self.starts, end)
        around = (self._word(first - 2), self._word(first - 1), self._word(last), self._word(last + 1))
        context = (around[1], around[2], on, who)
        return Slot(level, group, self.graph.text[start:end].lower(), start, end, part, head, context, around)

    def _word(self, number: int) -> str:
        return self.tokens[number][2] if 0 <= number < len(self.tokens) else _NOTHING

    def _object(self, index: int, node: Object, attributes: list[Attribute]) -> list[Slot]:
        text = self.graph.text
        head = text[node.head : node.end].lower()
        alive = "alive" if wordnet.load().topic(head) in ("person", "animal") else "thing"
        on, does = self.led_by.get(index, _NOTHING), self.acts.get(index, _NOTHING)
        start = min([one.start for one in attributes if one.end <= node.start] + [node.start])
        group = (node.tag, self._article(start) if node.tag == "NN" else _BARE, alive)
        found = []
        if node.start == node.head:
            found.append(self._slot(Level.WORD, ("object", *group), node.start, node.end, "n", head, on, does))
        if start < node.head:
            found.append(self._slot(Level.PHRASE, ("phrase", *group), start, node.end, "n", head, on, does))
        return found

    def _article(self, start: int) -> str:
        first = bisect_right(self.starts, start) - 1
        before = self._word(first - 1)
        if before in ("a", "an", "one"):
            return _INDEFINITE
        if before in ("the", "his", "her", "its", "their", "this", "that", "another", "'s"):
            return _DEFINITE
        return _BARE

    def _attribute(self, node: Attribute) -> list[Slot]:
        word = self.graph.words(node).lower()
        owner = self.graph.objects[node.owner] if node.owner is not None else None
        on = self.graph.text[owner.head : owner.end].lower() if owner else _NOTHING
        if node.kind is AttributeKind.NUMBER:
            if word not in _EXACT_NUMBERS:
                return []
            return [self._slot(Level.WORD, ("number",), node.start, node.end, "#", word, on)]
        # Only "a red hat": adjectives after their noun ("the hat is red") are rare, and adverbs look like them.
        if " " in word or owner is None or owner.start < node.end:
            return []
        kind = "colour" if word in tagging.COLOURS else node.tag
        return [self._slot(Level.WORD, ("attribute", kind), node.start, node.end, "a", word, on)]

    def _relation(self, node: Relation) -> list[Slot]:
        text = self.graph.text
        target = self.graph.objects[node.target] if node.target is not None else None
        on = text[target.head : target.end].lower() if target else _NOTHING
        subject = self.graph.objects[node.subject] if node.subject is not None else None
        who = text[subject.head : subject.end].lower() if subject else _NOTHING
        found = []
        if node.verb and node.tag in ("VBG", "VBZ", "VBP"):
            verb = text[slice(*node.verb)].lower()
            follows = "preposition" if node.preposition else "object" if target else "nothing"
            if " " not in verb:
                found.append(self._slot(Level.WORD, ("verb", node.tag, follows), *node.verb, "v", verb, on, who))
            if node.preposition and target and node.end == node.preposition[1]:
                place = (node.verb[0], node.preposition[1])
                found.append(self._slot(Level.PHRASE, ("relation", node.tag), *place, "v", verb, on, who))
        if node.preposition and target:
            preposition = text[slice(*node.preposition)].lower()
            if preposition in _SPATIAL or " " in preposition:
                kind = "behind verb" if node.verb else "behind noun"
                found.append(
                    self._slot(Level.WORD, ("preposition", kind), *node.preposition, "p", preposition, on, who)
                )
        return found
