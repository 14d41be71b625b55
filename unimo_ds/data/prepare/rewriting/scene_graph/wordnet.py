"""Word meanings from the extract of WordNet 3.0 shipped with the package: synonyms, hypernyms, topics.

`wordnet.tsv.gz` is made by `benchmarks/preparation/wordnet_extract.py` and is under WordNet's own licence (`WORDNET_LICENSE`).
Lines, tab-separated:
    n  @   TOPIC      PARENT PARENT ...    the next synset of the part of speech (n, v, a): its topic and hypernyms
    n  !   INFLECTED  BASE                 an irregular form
    n  WORD  SYNSET SYNSET ...             a word and its synsets, most frequent first
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterable
from importlib import resources

from unimo_ds.data.prepare.rewriting.scene_graph.lists import words

_ENDINGS = {
    "n": (
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
}
"""WordNet's rules of detachment (see morphy(7))."""
_TOPICS = {18: "person", 5: "animal", 8: "body", 15: "place", 14: "group"}
"""Numbers of WordNet's lexicographer files."""
_PEOPLE = words("people men women children kids person someone crowd couple family team group folks")


class WordNet:
    """Immutable. Words are in lower case; inflected forms are looked up by their base forms."""

    def __init__(self, lines: list[str]) -> None:
        self._senses: dict[str, dict[str, tuple[int, ...]]] = {"n": {}, "v": {}, "a": {}}
        self._irregular: dict[str, dict[str, list[str]]] = {"n": {}, "v": {}, "a": {}}
        self._topics: dict[str, list[int]] = {"n": [], "v": [], "a": []}
        self._parents: dict[str, list[tuple[int, ...]]] = {"n": [], "v": [], "a": []}
        for line in lines:
            part, word, first, second = line.split("\t")
            if word == "@":
                self._topics[part].append(int(first))
                self._parents[part].append(tuple(map(int, second.split())))
            elif word == "!":
                self._irregular[part].setdefault(first, []).append(second)
            else:
                self._senses[part][word] = tuple(map(int, first.split()))

    @functools.cache  # noqa: B019  (one instance per process)
    def bases(self, word: str, part: str) -> tuple[str, ...]:
        """Base forms of a word as noun (n), verb (v) or adjective (a); empty if it is not one."""
        known = self._senses[part]
        found = [word] if word in known else []
        found += [base for base in self._irregular[part].get(word, ()) if base in known]
        if not self._irregular[part].get(word):
            for ending, replacement in _ENDINGS[part]:
                if word.endswith(ending) and len(word) > len(ending) + 1:
                    stem = word[: len(word) - len(ending)] + replacement
                    undoubled = len(stem) > 3 and stem[-1] == stem[-2] and part == "v" and not replacement
                    found += [base for base in (stem, stem[:-1] if undoubled else stem) if base in known]
        return tuple(dict.fromkeys(found))

    @functools.cache  # noqa: B019
    def senses(self, word: str, part: str) -> tuple[frozenset[int], frozenset[int]]:
        """The word's synsets; and these with all their hypernyms.

        For nouns of several words ("tennis ball") the last word counts.
        """
        if part == "n":
            word = word.rsplit(" ", 1)[-1]
        found = frozenset(sense for base in self.bases(word, part) for sense in self._senses[part][base])
        return found, self._with_kinds(found, part)

    def _with_kinds(self, senses: Iterable[int], part: str) -> frozenset[int]:
        """The synsets and all their hypernyms."""
        above, waiting = set(senses), list(senses)
        while waiting:
            for parent in self._parents[part][waiting.pop()]:
                if parent not in above:
                    above.add(parent)
                    waiting.append(parent)
        return frozenset(above)

    @functools.cache  # noqa: B019
    def says_as_much(self, word: str, other: str, part: str) -> bool:
        """Whether `other` is a synonym or hypernym of `word`, both in their most frequent sense."""
        firsts = [
            {self._senses[part][base][0] for base in self.bases(one.rsplit(" ", 1)[-1], part)} for one in (word, other)
        ]
        return bool(self._with_kinds(firsts[0], part) & firsts[1])

    @functools.cache  # noqa: B019
    def topic(self, noun: str) -> str:
        """person, animal, body, place, group or thing, from the noun's most frequent sense."""
        noun = noun.rsplit(" ", 1)[-1]
        if noun in _PEOPLE:
            return "person"
        for base in self.bases(noun, "n"):
            number = self._topics["n"][self._senses["n"][base][0]]
            return _TOPICS.get(number, "thing")
        return "person" if noun.endswith(("er", "ers", "ist", "ists")) else "thing"


@functools.cache
def load() -> WordNet:
    """The shipped extract (about a second, once per process)."""
    content = resources.files(__package__).joinpath("wordnet.tsv.gz").read_bytes()
    return WordNet(gzip.decompress(content).decode().splitlines())
