"""What may stand in a slot instead: vocabularies by kind of node, learned from captions, and a draw that gives nothing away.

A replacement is drawn as the corpus itself would fill the slot: by its frequency in the slot's group and by how well it fits the
words around it. What may be true of the image is left out. That alone gives rewrites away: a common word is often replaced and
seldom put in, as nothing replaces itself. So every word has a potential h: it is put in with weight exp(h) and taken out with
weight exp(-h), and h is fitted until each word is put in as often as it is taken out (`calibrate`); likewise every pair of a word
and a neighbour or a node it is tied to. Then words and pairs of all rewrites have the frequencies of those of all originals.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare import slots, word_classes
from unimo_ds.data.prepare.compatibility import Compatibility, Together
from unimo_ds.data.prepare.scene_graph.graph import AttributeKind, SceneGraph
from unimo_ds.data.prepare.slots import Slot
from unimo_ds.data.schema import Level

_MIN_COUNT = 3
_MIN_PHRASE_COUNT = 2
_MAX_WORDS = 3000
"""Of one group; the most frequent are kept."""
_CONSIDERED = 100
"""Replacements of one slot that are looked at, best first."""
_SMOOTHING = 4.0
"""Times that every context is taken to have been seen with words by their frequency alone."""
_SHARPNESS = 0.75
"""Exponent of each neighbour's word: its neighbours are not independent witnesses."""
_ROUNDS = 60
_STEPS = (0.25, 0.12, 0.12, 0.12, 0.12)
"""Of the potentials of a word alone and with each neighbour."""
_PLACES = 2**19
"""Where potentials are kept, by hash."""
_REUSE = 0.2
"""Weight of a place that has been rewritten already, against fresh ones."""


@dataclass
class _Group:
    """Words of one form, by falling frequency."""

    texts: list[str]
    heads: list[str]
    share: NDArray[np.float64]
    index: dict[str, int]
    contexts: tuple[dict[str, tuple[NDArray[np.int64], NDArray[np.float64], float]], ...]
    """For each neighbour of the slot: word -> (numbers, counts and sum of counts of what was seen with it)."""


@dataclass(frozen=True)
class Facts:
    """What the captions of one image say, against which replacements are checked."""

    nouns: frozenset[str]
    verbs: frozenset[str]
    qualities: frozenset[tuple[str, str]]
    """(noun, quality)."""
    places: frozenset[tuple[str, str]]
    """(noun, preposition that leads to it)."""
    numbers: frozenset[str]


@dataclass(frozen=True)
class Filling:
    """What may stand in one slot of one caption."""

    slot: Slot
    texts: tuple[str, ...]
    """Best first."""
    own_places: NDArray[np.int64]
    """[1, 5] where the potentials of the slot's own text are: its own, and with each neighbour."""
    places: NDArray[np.int64]
    """[n, 5] likewise of the texts."""
    weights: NDArray[np.float64]
    """[n] shares of the slot's fillings that the corpus suggests."""


@dataclass(frozen=True)
class Replacement:
    slot: Slot
    text: str


class Replacements:
    """Made by `learn`."""

    def __init__(self, groups: dict[tuple[str, ...], _Group], together: Together, compatibility: Compatibility) -> None:
        self._groups = groups
        self._together = together
        self._compatibility = compatibility
        self._potentials: dict[Level, NDArray[np.float64]] = {}
        self._last_facts: Facts | None = None
        self._ruled_out: dict[tuple[str, str], frozenset[str]] = {}

    def fillings(self, graph: SceneGraph, facts: Facts, level: Level) -> list[Filling]:
        """Everything that may be put into the caption's slots of a level."""
        found = []
        for slot in slots.find(graph):
            # A word too rare to be put in is not taken out either: where rare words are missing is a rewrite.
            if slot.level is level and slot.group in self._groups and slot.text in self._groups[slot.group].index:
                found.append(self._fill(slot, facts))
        return [one for one in found if one.texts]

    def draw(
        self, fillings: Sequence[Filling], level: Level, randomness: np.random.Generator, *, number: int
    ) -> list[Replacement]:
        """Up to `number` different replacements, rather in different slots than twice in one."""
        if not fillings:
            return []
        weights = np.concatenate([self._balanced(one, level) for one in fillings])
        starts = np.cumsum([0] + [len(one.texts) for one in fillings])
        drawn: list[Replacement] = []
        while len(drawn) < number and weights.any():
            total = np.cumsum(weights)
            i = min(int(np.searchsorted(total, randomness.random() * total[-1], side="right")), len(weights) - 1)
            at = int(np.searchsorted(starts, i, side="right")) - 1
            drawn.append(Replacement(fillings[at].slot, fillings[at].texts[i - starts[at]]))
            weights[i] = 0
            weights[starts[at] : starts[at + 1]] *= _REUSE
        return drawn

    def calibrate(self, sample: Sequence[tuple[SceneGraph, Facts]], level: Level) -> float:
        """Fit the potentials of a level on some captions. Returns the share of replacements still out of balance."""
        of_caption, own, put, weights = (
            [np.zeros(0, np.int64)],
            [np.zeros((0, 5), int)],
            [np.zeros((0, 5), int)],
            [np.zeros(0)],
        )
        for caption, (graph, facts) in enumerate(sample):
            for one in self.fillings(graph, facts, level):
                of_caption.append(np.full(len(one.texts), caption))
                own.append(np.repeat(one.own_places, len(one.texts), axis=0))
                put.append(one.places)
                weights.append(one.weights)
        captions, suggested = np.concatenate(of_caption), np.concatenate(weights)
        used, places = np.unique(np.concatenate([*own, *put]), return_inverse=True)
        taken_out, put_in = np.split(places.reshape(-1, 5), 2)
        fitted = np.zeros(len(used))
        balance = 0.0
        for _ in range(_ROUNDS):
            shares = suggested * np.exp(fitted[put_in].sum(1) - fitted[taken_out].sum(1))
            shares /= np.bincount(captions, shares)[captions]
            step = np.zeros(len(used))
            for i in range(put_in.shape[1]):
                removed = np.bincount(taken_out[:, i], shares, minlength=len(used))
                inserted = np.bincount(put_in[:, i], shares, minlength=len(used))
                step += _STEPS[i] * np.log((removed + 1) / (inserted + 1))
                if i == 0:
                    balance = float(np.abs(removed - inserted).sum() / max(2 * removed.sum(), 1e-9))
            fitted += step
        potentials = np.zeros(_PLACES)
        potentials[used] = fitted
        self._potentials[level] = potentials
        return balance

    def _balanced(self, one: Filling, level: Level) -> NDArray[np.float64]:
        if level not in self._potentials:
            return one.weights.copy()
        potentials = self._potentials[level]
        balanced: NDArray[np.float64] = one.weights * np.exp(
            potentials[one.places].sum(1) - potentials[one.own_places].sum(1)
        )
        return balanced

    def _fill(self, slot: Slot, facts: Facts) -> Filling:
        group = self._groups[slot.group]
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
        # Rounded, so that the order of near-ties does not hang on the last bit.
        order = order[np.lexsort((order, -np.round(weights[order], 9)))]
        blocked = self._blocked(slot, facts)
        kept = [
            int(i)
            for i in order
            if group.heads[i] not in blocked and not self._together.go_together(slot.head, group.heads[i])
        ]
        numbers = np.array(kept, dtype=np.int64)
        own = np.array([group.index[slot.text]], dtype=np.int64)
        texts = tuple(group.texts[i] for i in kept)
        return Filling(slot, texts, _places(slot, own), _places(slot, numbers), weights[numbers])

    def _blocked(self, slot: Slot, facts: Facts) -> frozenset[str]:
        """Heads that may be true where the slot is, or are said of the image."""
        if self._last_facts is not facts:
            # The slots of one image come together and share most of what is ruled out.
            self._last_facts, self._ruled_out = facts, {}
        # Of qualities and places only those of the slot's own noun count.
        noun = slot.context[2] if slot.part in ("a", "p") else ""
        key = (slot.part, noun)
        if key not in self._ruled_out:
            said: Iterable[str]
            if slot.part in ("a", "p"):
                same = self._compatibility.compatible(noun, "n")
                said = (
                    word for owner, word in (facts.qualities if slot.part == "a" else facts.places) if owner in same
                )
            else:
                said = {"n": facts.nouns, "v": facts.verbs, "#": facts.numbers}[slot.part]
            self._ruled_out[key] = frozenset().union(
                *(self._compatibility.compatible(word, slot.part) for word in said)
            )
        return self._ruled_out[key] | self._compatibility.compatible(slot.head, slot.part)


def _places(slot: Slot, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, 5] places of the potentials of texts of the slot's group: their own, and together with each of its neighbours.

    Hashed, so that memory does not grow with the pairs; two that meet in one place are balanced together.
    """
    group = "/".join(slot.group)
    keys = [group, *(f"{group}/{i}/{word}" for i, word in enumerate(slot.context))]
    bases = np.array([zlib.crc32(key.encode()) for key in keys], dtype=np.int64)
    return (bases[None, :] + numbers[:, None] * 2_654_435_761) % _PLACES


def learn(graphs_of_images: Iterable[Sequence[SceneGraph]], *, min_count: int = _MIN_COUNT) -> Replacements:
    """Vocabularies from the scene graphs of each image's captions. Deterministic; memory is bounded by the vocabulary."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    heads: dict[str, tuple[str, str]] = {}
    contexts: Counter[tuple[tuple[str, ...], int, str, str]] = Counter()
    together = Together()
    for number, graphs in enumerate(graphs_of_images):
        together.add(word_classes.content_words(graph.text for graph in graphs))
        for graph in graphs:
            for slot in slots.find(graph):
                counts[slot.group][slot.text] += 1
                heads[f"{slot.group[0]} {slot.text}"] = (slot.part, slot.head)
                contexts.update((slot.group, i, word, slot.text) for i, word in enumerate(slot.context))
        if number % 20_000 == 19_999:
            contexts = Counter({key: count for key, count in contexts.items() if count > 1})
    groups = {}
    vocabulary: dict[str, set[str]] = defaultdict(set)
    for key, texts in sorted(counts.items()):
        least = min(min_count, _MIN_PHRASE_COUNT) if key[0] == "phrase" else min_count
        kept = sorted((text for text, count in texts.items() if count >= least), key=lambda text: (-texts[text], text))
        kept = kept[:_MAX_WORDS]
        if len(kept) < 2:
            continue
        of_group = [heads[f"{key[0]} {text}"] for text in kept]
        for part, head in of_group:
            vocabulary[part].add(head)
        share = np.array([texts[text] for text in kept], dtype=np.float64)
        groups[key] = _Group(
            kept,
            [head for _, head in of_group],
            share / share.sum(),
            {text: i for i, text in enumerate(kept)},
            ({}, {}, {}, {}),
        )
    rows: dict[tuple[tuple[str, ...], int, str], list[tuple[int, int]]] = defaultdict(list)
    for (key, i, word, text), count in sorted(contexts.items()):
        if key in groups and text in groups[key].index:
            rows[key, i, word].append((groups[key].index[text], count))
    for (key, i, word), seen in rows.items():
        numbers, seen_counts = np.array([n for n, _ in seen]), np.array([count for _, count in seen], dtype=np.float64)
        groups[key].contexts[i][word] = (numbers, seen_counts, float(seen_counts.sum()))
    return Replacements(groups, together, Compatibility(vocabulary))


def facts_of(graphs: Sequence[SceneGraph]) -> Facts:
    """What the captions of one image say."""
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
