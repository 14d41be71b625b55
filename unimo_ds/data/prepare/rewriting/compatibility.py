"""Which words may both be true of one picture: then replacing one by the other need not make a caption false.

Three sources: WordNet (synonyms, hypernyms, hyponyms), short tables for what WordNet lacks, and the corpus: words that occur in
captions of the same image more often than chance mean the same or go together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from unimo_ds.data.prepare.rewriting.scene_graph import wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.lists import rows, words

_COLOURS = rows("""
tan, brown, beige, golden, gold, blond, blonde, khaki
gray, grey, silver
red, maroon, pink, orange
blue, navy, turquoise, teal
yellow, golden, gold, blond, blonde
orange, brown, golden, tan
purple, pink, maroon
white, beige, silver
green, teal, turquoise, khaki, camouflage
""")
_PREPOSITIONS = rows("""
in, on, at, inside, inside of, through, into, onto, on to, in to, on top of, atop, across, around, along, among, up, by
near, next to, by, beside, along, alongside, against, at, around, on the side of, at the edge of, on the edge of, past, from
near, next to, by, beside, toward, towards, up to, in front of, on
near, next to, by, beside, past, behind, in, on
over, above, across, on top of, through, off, along, past, up, down, into, onto
under, underneath, beneath, below, in, through, at, near, by, next to, inside
from, off, out of, away from, off of, outside of, down, near
in the middle of, in, on, at, among, between, near, through
""")
"""Prepositions in one row may be true of the same place."""
_PERSONS = rows("""
man, men, guy, guys, gentleman, male, males, father, dad
woman, women, lady, ladies, female, females, mother, mom
boy, boys
girl, girls
baby, babies, infant, toddler, toddlers
""")
"""Two of these rows exclude each other; both are compatible with other words for persons: a man may be a player."""
_GENERAL_PERSONS = words("""
people person someone child children kid kids adult adults teenager teenagers couple family crowd group team friend friends youth
""")
_MAX_LIFT = 1.5
_MAX_SHARE = 0.15


@dataclass
class Together:
    """How often words occur together in the captions of one image."""

    images: int = 0
    with_word: Counter[str] = field(default_factory=Counter)
    """Number of images with each word."""
    with_both: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of images with each pair of words, in alphabetical order."""

    def add(self, said: Iterable[str]) -> None:
        """Count one image, given the words of its captions."""
        ordered = sorted(set(said))
        self.images += 1
        self.with_word.update(ordered)
        self.with_both.update((one, other) for i, one in enumerate(ordered) for other in ordered[i + 1 :])
        if self.images % 20_000 == 0:
            # Rare pairs are no evidence; dropping them bounds memory (lossy counting).
            self.with_both = Counter({pair: count for pair, count in self.with_both.items() if count > 1})

    def go_together(self, one: str, other: str) -> bool:
        both = self.with_both[min(one, other), max(one, other)]
        if both < 2:
            return False
        lift = both * self.images / (self.with_word[one] * self.with_word[other])
        return lift > _MAX_LIFT or both > _MAX_SHARE * self.with_word[one]


class Compatibility:
    """For a fixed vocabulary, the words compatible with each word."""

    def __init__(self, vocabulary: Mapping[str, Iterable[str]]) -> None:
        """vocabulary: part of speech (n, v, a as in WordNet; p: prepositions, #: numbers) -> words that may replace others."""
        self._known: dict[tuple[str, str], frozenset[str]] = {}
        self.vocabulary = {part: sorted(set(of_part)) for part, of_part in vocabulary.items()}
        self._with_sense: dict[str, dict[int, list[str]]] = {}
        self._under: dict[str, dict[int, list[str]]] = {}
        self._persons = [word for word in self.vocabulary.get("n", []) if _is_person(word)]
        for part in ("n", "v", "a"):
            with_sense, under = defaultdict(list), defaultdict(list)
            for word in self.vocabulary.get(part, []):
                senses, above = wordnet.load().senses(word, part)
                for sense in senses:
                    with_sense[sense].append(word)
                for sense in above:
                    under[sense].append(word)
            self._with_sense[part], self._under[part] = dict(with_sense), dict(under)

    def compatible(self, word: str, part: str) -> frozenset[str]:
        """The words of the vocabulary that may be true where `word` is true, including itself."""
        key = (word, part)
        if key not in self._known:
            self._known[key] = frozenset(self._find(word, part)) | {word}
        return self._known[key]

    def _find(self, word: str, part: str) -> set[str]:
        if part in ("p", "#"):
            return {other for row in _PREPOSITIONS if part == "p" and word in row for other in row}
        senses, above = wordnet.load().senses(word, part)
        found = {other for sense in senses for other in self._under[part].get(sense, ())}
        found.update(other for sense in above for other in self._with_sense[part].get(sense, ()))
        if part == "a":
            found.update(other for row in _COLOURS if word in row for other in row)
        if part == "n" and _is_person(word):
            row = _row(word)
            for other in self._persons:
                other_row = _row(other)
                if row is not None and other_row is not None and row != other_row:
                    found.discard(other)
                elif row is not None or other_row is not None or {word, other} & _GENERAL_PERSONS:
                    found.add(other)
        return found


def _is_person(word: str) -> bool:
    return wordnet.load().topic(word) == "person"


def _row(person: str) -> int | None:
    return next((i for i, row in enumerate(_PERSONS) if person in row), None)
