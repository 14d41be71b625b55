"""How much of a sentence's meaning another one preserves: roughly by words, closely by scene graphs. English, with WordNet.

A word is preserved by another form of itself, a synonym, or a hypernym (a boy is a child; a child need not be a boy).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unimo_ds.data.prepare.rewriting import word_classes
from unimo_ds.data.prepare.rewriting.scene_graph import wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.graph import AttributeKind, Relation, SceneGraph
from unimo_ds.data.prepare.rewriting.scene_graph.lists import rows, words

_PARTS = ("n", "v", "a")
_MIN_PAIRS = 0.6
"""Fraction of the relations that must connect the same objects; not all, since the parser makes mistakes too."""
_SAME_PLACES = rows("""
near, next to, by, beside, close to, alongside
on, on top of, upon, atop
in, inside, inside of, within
into, in to, inside, in
onto, on to, on
behind, in back of, at the back of
under, underneath, beneath, below
over, above
toward, towards
around, round
along, alongside
""")
"""Prepositions in one row mean the same."""
_SMALL_WORDS = words("a the is are was were his her hers its their theirs him them himself herself itself themselves")
_T = TypeVar("_T")
_S = TypeVar("_S")


def closeness(text: str, other: str) -> float:
    """Fraction of both sentences' content words that the other one preserves, in [0, 1]; 1 if neither has any."""
    own, others = Counter(_content(text)), Counter(_content(other))
    total = own.total() + others.total()
    if not total:
        return 1.0
    # Identical words first; the remaining ones may be synonyms.
    shared = own & others
    rest, other_rest = [*(own - shared).elements()], [*(others - shared).elements()]
    matched = _num_matched(rest, other_rest, lambda one, two: _is_kept(one, two) or _is_kept(two, one))
    return 2 * (shared.total() + matched) / total


def _content(text: str) -> list[str]:
    return [word for word in word_classes.words_of(text) if word not in word_classes.FUNCTION_WORDS]


def _is_kept(word: str, other: str) -> bool:
    """Whether `other` preserves `word` in any of their senses."""
    if word == other:
        return True
    lexicon = wordnet.load()
    return any(lexicon.senses(word, part)[1] & lexicon.senses(other, part)[0] for part in _PARTS)


def _is_surely_kept(word: str, other: str, part: str) -> bool:
    """As `_is_kept`, but in the most frequent senses: bad translations are often synonyms in some rare sense."""
    return word == other or wordnet.load().says_as_much(word, other, part)


@dataclass(frozen=True)
class _Thing:
    head: str
    tag: str
    qualities: tuple[str, ...]
    """Its attributes, and the other words of its name."""
    numbers: tuple[str, ...]


def is_same_meaning(graph: SceneGraph, other: SceneGraph) -> bool:
    """Whether the second sentence means the same as the first, according to their scene graphs.

    Objects correspond one to one, with the same grammatical number, attributes and quantity; articles, pronouns and forms of
    "be" are the same; relations correspond one to one, with a verb and preposition of the same meaning, and at least 60 % of
    them connect the same objects.
    """
    things, others = _things(graph), _things(other)
    if len(things) != len(others) or len(graph.relations) != len(other.relations):
        return False
    if _small_words(graph.text) != _small_words(other.text):
        return False
    partner = _matched(things, others, _is_same_thing)
    if len(partner) < len(things):
        return False
    relations = _matched(
        graph.relations, other.relations, lambda one, two: _is_same_relation(graph, one, other, two, partner)
    )
    if len(relations) < _MIN_PAIRS * len(graph.relations):
        return False
    same = _num_matched(graph.relations, other.relations, lambda one, two: _is_same_saying(graph, one, other, two))
    return same == len(graph.relations)


def _small_words(text: str) -> list[str]:
    """Sorted articles, pronouns (his is not its) and forms of "be" (is or are)."""
    said = ("a" if word == "an" else word for word in word_classes.words_of(text))
    return sorted(word for word in said if word in _SMALL_WORDS)


def _things(graph: SceneGraph) -> list[_Thing]:
    text = graph.text.lower()
    found = []
    for index, node in enumerate(graph.objects):
        own = [one for one in graph.attributes if one.owner == index]
        qualities = [graph.words(one).lower() for one in own if one.kind is AttributeKind.QUALITY]
        numbers = [graph.words(one).lower() for one in own if one.kind is AttributeKind.NUMBER]
        name = text[node.start : node.head].split()
        found.append(_Thing(text[node.head : node.end], node.tag, (*name, *qualities), tuple(sorted(numbers))))
    return found


def _is_same_thing(thing: _Thing, other: _Thing) -> bool:
    return (
        thing.tag == other.tag
        and thing.numbers == other.numbers
        and len(thing.qualities) == len(other.qualities)
        and _is_surely_kept(thing.head, other.head, "n")
        and _num_matched(thing.qualities, other.qualities, _is_same_quality) == len(thing.qualities)
    )


def _is_same_quality(word: str, other: str) -> bool:
    return _is_surely_kept(word, other, "a") or _is_surely_kept(word, other, "n")


def _is_same_relation(
    graph: SceneGraph, relation: Relation, other_graph: SceneGraph, other: Relation, partner: dict[int, int]
) -> bool:
    return (
        _is_same_saying(graph, relation, other_graph, other)
        and _end(relation.subject, partner) == other.subject
        and _end(relation.target, partner) == other.target
    )


def _end(number: int | None, partner: dict[int, int]) -> int | None:
    return None if number is None else partner[number]


def _is_same_saying(graph: SceneGraph, relation: Relation, other_graph: SceneGraph, other: Relation) -> bool:
    verb, other_verb = _verb(graph, relation), _verb(other_graph, other)
    place, other_place = _place(graph, relation), _place(other_graph, other)
    if (verb is None) != (other_verb is None) or (place is None) != (other_place is None):
        return False
    same_verb = verb is None or other_verb is None or _is_surely_kept(verb, other_verb, "v")
    same_place = place == other_place or any(place in row and other_place in row for row in _SAME_PLACES)
    return same_verb and same_place


def _verb(graph: SceneGraph, relation: Relation) -> str | None:
    return graph.text[slice(*relation.verb)].lower() if relation.verb else None


def _place(graph: SceneGraph, relation: Relation) -> str | None:
    return graph.text[slice(*relation.preposition)].lower() if relation.preposition else None


def _num_matched(ones: Sequence[_T], others: Sequence[_S], match: Callable[[_T, _S], bool]) -> int:
    return len(_matched(ones, others, match))


def _matched(ones: Sequence[_T], others: Sequence[_S], match: Callable[[_T, _S], bool]) -> dict[int, int]:
    """Greedy matching: index of each one's partner, the first that fits and is free."""
    partner: dict[int, int] = {}
    free = list(range(len(others)))
    for i, one in enumerate(ones):
        found = next((j for j in free if match(one, others[j])), None)
        if found is not None:
            partner[i] = found
            free.remove(found)
    return partner
