"""Possible replacements for a slot: vocabularies by kind of node, learned from captions.

Replacements are suggested as the corpus would fill the slot: by frequency in the slot's group and by fit with the surrounding
words. Those that may be true of the image are left out. `balancing` chooses among the suggestions.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.rewriting import slots, word_classes
from unimo_ds.data.prepare.rewriting.compatibility import Compatibility, Together
from unimo_ds.data.prepare.rewriting.scene_graph import names
from unimo_ds.data.prepare.rewriting.scene_graph.graph import AttributeKind, SceneGraph
from unimo_ds.data.prepare.rewriting.slots import Slot
from unimo_ds.data.schema import Level

_MIN_COUNT = 3
_MIN_PHRASE_COUNT = 2
_MAX_WORDS = 3000
"""Per group; the most frequent are kept."""
_CONSIDERED = 40
"""Replacements considered per slot, best first."""
_SMOOTHING = 4.0
"""Pseudo-count of each context, distributed by word frequency."""
_SHARPNESS = 0.75
"""Exponent of each neighbour's fit, below 1 because neighbours are not independent evidence."""


@dataclass
class Group:
    """Words of one form, by decreasing frequency."""

    texts: list[str]
    heads: list[str]
    share: NDArray[np.float64]
    index: dict[str, int]
    words: NDArray[np.uint64]
    """[n, words of the longest text] hashes of each text's words."""
    lengths: NDArray[np.int64]
    """[n] numbers of words."""
    contexts: tuple[dict[str, tuple[NDArray[np.int64], NDArray[np.float64], float]], ...]
    """For each neighbour of the slot: its word -> (indices, counts and sum of counts of the texts seen with it)."""


@dataclass(frozen=True)
class Facts:
    """Words that the captions of one image state, to check replacements against."""

    nouns: frozenset[str]
    verbs: frozenset[str]
    qualities: frozenset[tuple[str, str]]
    """(noun, quality)."""
    places: frozenset[tuple[str, str]]
    """(noun, preposition before it)."""
    numbers: frozenset[str]


@dataclass(frozen=True)
class Filling:
    """Possible replacements for one slot of one caption."""

    slot: Slot
    texts: tuple[str, ...]
    """Best first."""
    own: int
    """Index of the slot's original text in its group."""
    numbers: NDArray[np.int64]
    """[n] indices of the texts."""
    group: Group
    weights: NDArray[np.float64]
    """[n] suggested probabilities."""


class Replacements:
    """Made by `learn`."""

    def __init__(
        self,
        groups: dict[tuple[str, ...], Group],
        together: Together,
        compatibility: Compatibility,
        spellings: dict[str, str],
    ) -> None:
        """spellings: text -> its usual spelling within sentences, if that is not lower case."""
        self.groups, self.together, self.compatibility, self.spellings = groups, together, compatibility, spellings
        self._last_facts: Facts | None = None
        self._ruled_out: dict[tuple[str, str], frozenset[str]] = {}

    def fillings(self, graph: SceneGraph, facts: Facts, level: Level) -> list[Filling]:
        """Possible replacements for the caption's slots of a level."""
        found = []
        for slot in slots.find(graph):
            # A word too rare to be inserted is not removed either: missing rare words would give rewrites away.
            if slot.level is level and slot.group in self.groups and slot.text in self.groups[slot.group].index:
                found.append(self._fill(slot, facts))
        return [one for one in found if one.texts]

    def _fill(self, slot: Slot, facts: Facts) -> Filling:
        group = self.groups[slot.group]
        weights = group.share.copy()
        for neighbour, seen in zip(slot.context, group.contexts, strict=True):
            if neighbour and neighbour in seen:
                numbers, counts, total = seen[neighbour]
                fit = np.full(len(weights), _SMOOTHING / (total + _SMOOTHING))
                fit[numbers] += counts / (total + _SMOOTHING) / group.share[numbers]
                weights *= fit**_SHARPNESS
        weights /= weights.sum()
        if len(weights) > _CONSIDERED:
            order = np.argpartition(-weights, _CONSIDERED)[:_CONSIDERED]
        else:
            order = np.arange(len(weights))
        # Rounded, so that the order of near-ties does not depend on the last bit.
        order = order[np.lexsort((order, -np.round(weights[order], 9)))]
        blocked = self._blocked(slot, facts)
        kept = [
            int(i)
            for i in order
            if group.heads[i] not in blocked and not self.together.go_together(slot.head, group.heads[i])
        ]
        numbers = np.array(kept, dtype=np.int64)
        texts = tuple(group.texts[i] for i in kept)
        return Filling(slot, texts, group.index[slot.text], numbers, group, weights[numbers])

    def _blocked(self, slot: Slot, facts: Facts) -> frozenset[str]:
        """Heads that may be true in place of the slot's own, or are stated by the image's captions."""
        if self._last_facts is not facts:
            # Slots of one image are consecutive and share most of the excluded words.
            self._last_facts, self._ruled_out = facts, {}
        # For qualities and places, only those of the slot's own noun matter.
        noun = slot.context[2] if slot.part in ("a", "p") else ""
        key = (slot.part, noun)
        if key not in self._ruled_out:
            said: Iterable[str]
            if slot.part in ("a", "p"):
                same = self.compatibility.compatible(noun, "n")
                said = (
                    word for owner, word in (facts.qualities if slot.part == "a" else facts.places) if owner in same
                )
            else:
                said = {"n": facts.nouns, "v": facts.verbs, "#": facts.numbers}[slot.part]
            self._ruled_out[key] = frozenset().union(*(self.compatibility.compatible(word, slot.part) for word in said))
        return self._ruled_out[key] | self.compatibility.compatible(slot.head, slot.part)


@functools.lru_cache(maxsize=2**17)
def hash_of(word: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little"))


def learn(graphs_of_images: Iterable[Sequence[SceneGraph]]) -> Replacements:
    """Learn vocabularies from the scene graphs of each image's captions. Deterministic; the vocabulary bounds memory."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    heads: dict[str, tuple[str, str]] = {}
    contexts: Counter[tuple[tuple[str, ...], int, str, str]] = Counter()
    written: dict[str, Counter[str]] = defaultdict(Counter)
    together = Together()
    for number, graphs in enumerate(graphs_of_images):
        together.add(word_classes.content_words(graph.text for graph in graphs))
        for graph in graphs:
            for slot in slots.find(graph):
                counts[slot.group][slot.text] += 1
                heads[f"{slot.group[0]} {slot.text}"] = (slot.part, slot.head)
                contexts.update((slot.group, i, word, slot.text) for i, word in enumerate(slot.context))
                if not names.is_by_place(graph.text, slot.start):
                    written[slot.text][graph.text[slot.start : slot.end]] += 1
        if number % 20_000 == 19_999:
            contexts = Counter({key: count for key, count in contexts.items() if count > 1})
    groups = {}
    vocabulary: dict[str, set[str]] = defaultdict(set)
    for key, texts in sorted(counts.items()):
        least = _MIN_PHRASE_COUNT if key[0] == "phrase" else _MIN_COUNT
        kept = sorted((text for text, count in texts.items() if count >= least), key=lambda text: (-texts[text], text))
        kept = kept[:_MAX_WORDS]
        if len(kept) < 2:
            continue
        of_group = [heads[f"{key[0]} {text}"] for text in kept]
        for part, head in of_group:
            vocabulary[part].add(head)
        groups[key] = make_group(
            kept, [head for _, head in of_group], np.array([texts[text] for text in kept], dtype=np.float64)
        )
    rows: dict[tuple[tuple[str, ...], int, str], list[tuple[int, int]]] = defaultdict(list)
    for (key, i, word, text), count in sorted(contexts.items()):
        if key in groups and text in groups[key].index:
            rows[key, i, word].append((groups[key].index[text], count))
    for (key, i, word), seen in rows.items():
        numbers, seen_counts = np.array([n for n, _ in seen]), np.array([count for _, count in seen], dtype=np.float64)
        groups[key].contexts[i][word] = (numbers, seen_counts, float(seen_counts.sum()))
    spellings = {}
    for text in sorted({text for group in groups.values() for text in group.texts}):
        usual = max(written[text].items(), key=lambda item: (item[1], item[0]), default=(text, 0))[0]
        if usual != text:
            spellings[text] = usual
    return Replacements(groups, together, Compatibility(vocabulary), spellings)


def make_group(texts: list[str], heads: list[str], counts: NDArray[np.float64]) -> Group:
    """A group without contexts. counts: [n] frequencies of the texts."""
    words = [text.split() for text in texts]
    hashes = np.zeros((len(texts), max(map(len, words))), np.uint64)
    for i, of_text in enumerate(words):
        hashes[i, : len(of_text)] = [hash_of(word) for word in of_text]
    lengths = np.array([len(of_text) for of_text in words])
    index = {text: i for i, text in enumerate(texts)}
    return Group(texts, heads, counts / counts.sum(), index, hashes, lengths, ({}, {}, {}, {}))


def facts_of(graphs: Sequence[SceneGraph]) -> Facts:
    """Words stated in the captions of one image."""
    nouns, verbs, numbers = set(), set(), set()
    qualities, places = set(), set()
    for graph in graphs:
        text = graph.text.lower()
        named = [text[one.head : one.end] for one in graph.objects]
        nouns.update(named)
        for attribute in graph.attributes:
            word = graph.words(attribute).lower()
            if attribute.kind is AttributeKind.NUMBER:
                numbers.add(word)
            elif attribute.owner is not None:
                qualities.add((named[attribute.owner], word))
        for relation in graph.relations:
            if relation.verb:
                verbs.add(text[slice(*relation.verb)])
            if relation.preposition and relation.target is not None:
                places.add((named[relation.target], text[slice(*relation.preposition)]))
    return Facts(frozenset(nouns), frozenset(verbs), frozenset(qualities), frozenset(places), frozenset(numbers))
