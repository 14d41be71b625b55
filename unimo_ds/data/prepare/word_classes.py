"""Which word may stand for which, learned from captions alone: same places in a sentence, but not said of the same picture.

Words are compared by their left and right neighbours (positive pointwise mutual information, reduced by SVD). Of two words with
the same neighbours, some are alternatives (red, blue) and some say the same thing (boy, child). The latter come together in the
captions of one image more often than chance, and are kept out, so that a swapped caption is false. No tagger or lexicon is
needed, so it works on any language and domain with white space between words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_FUNCTION_WORDS = """
a an the this that these those some any another other each every all both several many few more most his her
its their my your our he she it they him them who whom which what while as if when where there here and or but
nor so than then is are was were be been being am has have had having do does did doing done can could will
would shall should may might must not no yes of to at by for from with without in on into onto out off up down
over under above below behind between among through across along around near next against toward towards
beside during before after about inside outside upon past one's s t
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Never swapped by what the corpus teaches: a changed article or auxiliary makes bad grammar, not a false sentence."""
_DETERMINERS = """
a an the his her its their two three four five six some several many
"""
DETERMINERS = frozenset(_DETERMINERS.split())
OPPOSITES = {
    "on": "under",
    "under": "on",
    "above": "below",
    "below": "above",
    "over": "under",
    "behind": "in front of",
    "inside": "outside",
    "outside": "inside",
    "into": "out of",
    "up": "down",
    "down": "up",
    "near": "far from",
    "with": "without",
    "without": "with",
    "left": "right",
    "right": "left",
    "before": "after",
    "after": "before",
}
"""Relations whose other one is false wherever the first is true."""

_MAX_WORDS = 6000
_NUM_CONTEXTS = 1000
_DIMENSIONS = 64
_MAX_LIFT = 1.5
"""Words of one image's captions more often together than this multiple of chance say the same thing."""
_MAX_SHARE = 0.15
"""Likewise when this share of the images with the one word have the other too."""
_MIN_SIMILARITY = 0.45
_NUM_ALTERNATIVES = 12


@dataclass(frozen=True)
class WordClasses:
    """Alternatives of every frequent content word, most similar first."""

    alternatives: dict[str, tuple[str, ...]]
    weights: dict[str, NDArray[np.float64]]
    """Chance of each alternative: similarity times the square root of its frequency."""
    phrases: dict[str, tuple[str, ...]]
    """Head noun -> phrases that end with it ("black dog"), most frequent first."""


def words_of(text: str) -> list[str]:
    """Lower-case words in their order."""
    return WORD.findall(text.lower())


def content_words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in words_of(text)} - FUNCTION_WORDS


def learn(captions_of_images: Iterable[Sequence[str]], *, min_count: int = 10) -> WordClasses:
    """Word classes from the captions of each image. Deterministic; memory is bounded by the vocabulary, not the corpus.

    captions_of_images: consumed once; pictures with one caption teach places but nothing about what means the same.
    """
    counts: Counter[str] = Counter()
    left: Counter[tuple[str, str]] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    images_with: Counter[str] = Counter()
    phrases: Counter[tuple[str, ...]] = Counter()
    num_images = 0
    for number, captions in enumerate(captions_of_images):
        num_images += 1
        of_image: set[str] = set()
        for caption in captions:
            words = words_of(caption)
            counts.update(words)
            left.update(zip(["<s>", *words], [*words, "</s>"], strict=True))
            of_image.update(words)
            phrases.update(tuple(words[start:end]) for start, end in phrase_spans(words) if end - start > 1)
        content = sorted(of_image - FUNCTION_WORDS)
        images_with.update(content)
        together.update((a, b) for i, a in enumerate(content) for b in content[i + 1 :])
        if number % 20_000 == 19_999:
            # Rare pairs carry no evidence; dropping them bounds the memory (lossy counting).
            for table in (left, together, phrases):
                _drop_rare(table)
    content_vocabulary = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_WORDS]
        if count >= min_count and word not in FUNCTION_WORDS and len(word) > 1
    ]
    alternatives, weights = _alternatives(content_vocabulary, counts, left, together, images_with, num_images)
    return WordClasses(alternatives, weights, _phrases_by_head(phrases, alternatives))


def phrase_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where noun phrases stand, without their determiners: up to three content words behind a determiner or number."""
    spans = []
    for i, word in enumerate(words):
        if word not in DETERMINERS or (i and words[i - 1] in DETERMINERS):
            continue
        start = i + 1
        while start < len(words) and words[start] in DETERMINERS:
            start += 1
        end = start
        singular = word in ("a", "an")
        while end < len(words) and end - start < 3 and not _ends_phrase(words[end], singular and end > start):
            end += 1
        if end > start:
            spans.append((start, end))
    return spans


def same_root(one: str, other: str) -> bool:
    """Whether two words are likely forms of one (dog, dogs; run, running)."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared >= 3 and max(len(one), len(other)) - shared <= 4


def _ends_phrase(word: str, behind_singular: bool) -> bool:
    """Whether a word stands behind a noun phrase, not in it: a function word, a participle, or a verb ("a dog runs")."""
    if word in FUNCTION_WORDS or (len(word) > 5 and word.endswith("ing")):
        return True
    return behind_singular and word.endswith("s") and not word.endswith(("ss", "us"))


def _alternatives(
    vocabulary: list[str],
    counts: Counter[str],
    left: Counter[tuple[str, str]],
    together: Counter[tuple[str, str]],
    images_with: Counter[str],
    num_images: int,
) -> tuple[dict[str, tuple[str, ...]], dict[str, NDArray[np.float64]]]:
    if len(vocabulary) < 3:
        return {}, {}
    vectors = _context_vectors(vocabulary, counts, left)
    similarity = vectors @ vectors.T
    alternatives: dict[str, tuple[str, ...]] = {}
    weights: dict[str, NDArray[np.float64]] = {}
    for i, word in enumerate(vocabulary):
        row = similarity[i]
        # Rounded, so that the order of near-ties does not hang on the last bit.
        order = np.lexsort((np.arange(len(row)), -np.round(row, 4)))
        chosen: list[int] = []
        for j in order:
            if row[j] < _MIN_SIMILARITY or len(chosen) == _NUM_ALTERNATIVES:
                break
            other = vocabulary[j]
            if j == i or same_root(word, other):
                continue
            both = together[min(word, other), max(word, other)]
            lift = both * num_images / max(images_with[word] * images_with[other], 1)
            if both >= 2 and (lift > _MAX_LIFT or both > _MAX_SHARE * images_with[word]):
                continue
            chosen.append(int(j))
        if chosen:
            raw = np.array([row[j] * np.sqrt(counts[vocabulary[j]]) for j in chosen], dtype=np.float64)
            alternatives[word] = tuple(vocabulary[j] for j in chosen)
            weights[word] = np.round(raw / raw.sum(), 6)
            weights[word] /= weights[word].sum()
    return alternatives, weights


def _context_vectors(
    vocabulary: list[str], counts: Counter[str], left: Counter[tuple[str, str]]
) -> NDArray[np.float64]:
    """[n, d] unit vectors of what stands before and behind each word."""
    row_of = {word: i for i, word in enumerate(vocabulary)}
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NUM_CONTEXTS]
    column_of = {word: i for i, (word, _) in enumerate([*frequent, ("<s>", 0), ("</s>", 0)])}
    rows, columns, values = [], [], []
    for (before, word), count in sorted(left.items()):
        if word in row_of and before in column_of:
            rows.append(row_of[word])
            columns.append(column_of[before])
            values.append(count)
        if before in row_of and word in column_of:
            rows.append(row_of[before])
            columns.append(len(column_of) + column_of[word])
            values.append(count)
    table = sparse.csr_matrix((np.array(values, float), (rows, columns)), shape=(len(row_of), 2 * len(column_of)))
    total = table.sum()
    expected = (
        np.asarray(table.sum(1))[:, 0][table.nonzero()[0]] * np.asarray(table.sum(0))[0][table.nonzero()[1]] / total
    )
    table.data = np.maximum(np.log(table.data / expected), 0)
    dimensions = min(_DIMENSIONS, len(vocabulary) - 1)
    left_vectors, scales, _ = randomized_svd(table, dimensions, random_state=0)
    vectors: NDArray[np.float64] = normalize(left_vectors * np.sqrt(scales))
    return vectors


def _phrases_by_head(
    phrases: Counter[tuple[str, ...]], alternatives: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    heads: dict[str, list[str]] = {}
    for phrase, count in sorted(phrases.items(), key=lambda item: (-item[1], item[0])):
        if count >= 3 and phrase[-1] in alternatives and len(heads.setdefault(phrase[-1], [])) < 50:
            heads[phrase[-1]].append(" ".join(phrase))
    return {head: tuple(found) for head, found in heads.items() if found}


def _drop_rare(table: Counter[tuple[str, ...]] | Counter[tuple[str, str]]) -> None:
    for key in [key for key, count in table.items() if count < 2]:
        del table[key]  # type: ignore[arg-type]
