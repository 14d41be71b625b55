"""Similar captions of other images, by TF-IDF, as hard negatives; each caption is used about equally often.

Taking the most similar captions would give rewrites away: short captions of common words are similar to everything, and would
appear as rewrites far more often than as originals. So each caption has a potential, fitted until use is about equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from unimo_ds.data.prepare.rewriting import word_classes
from unimo_ds.data.prepare.rewriting.word_classes import WORD

_MAX_SIMILARITY = 0.9
"""More similar captions of other images count as the same sentence."""
_SEARCHED = 100
_BLOCK = 500
_TEMPERATURE = 0.1
"""Sampling temperature among similar captions: lower prefers the most similar ones, at the cost of less equal use."""
_ROUNDS = 40


def choose(
    captions_of_images: Sequence[Sequence[str]], *, number: int, randomness: np.random.Generator
) -> list[list[list[str]]]:
    """For each caption of each image, similar captions of other images: chosen ones first, then some spares.

    Left out: near-duplicates, and captions without a content word that the image's own captions lack, since they may be true of
    it. number: captions to be used from each list; use is balanced for these.
    Memory: one block of rows at a time against all given captions, and `_SEARCHED` numbers per caption.
    """
    texts = [caption for captions in captions_of_images for caption in captions]
    image_of = np.repeat(np.arange(len(captions_of_images)), [len(captions) for captions in captions_of_images])
    content = [frozenset(word_classes.content_words([text])) for text in texts]
    known = [frozenset(word_classes.content_words(captions)) for captions in captions_of_images]
    rows = _scored_rows(texts, image_of)
    found, similarities = [], []
    for image, (columns, values) in zip(image_of, rows, strict=True):
        says_more = np.array([bool(content[i] - known[image]) for i in columns], dtype=bool)
        found.append(columns[says_more])
        similarities.append(values[says_more])
    order = balanced_order(found, similarities, number=number, randomness=randomness)
    chosen: list[list[list[str]]] = [[] for _ in captions_of_images]
    for image, columns, ranks in zip(image_of, found, order, strict=True):
        chosen[image].append([texts[i] for i in columns[ranks][: 2 * number + 4]])
    return chosen


def balanced_order(
    found: Sequence[NDArray[np.int64]],
    similarities: Sequence[NDArray[np.float64]],
    *,
    number: int,
    randomness: np.random.Generator,
) -> list[NDArray[np.int64]]:
    """Order each list of candidates so that the first `number` of all lists use each candidate about equally often.

    found: candidates of each list, as indices in [0, len(found)) of the lists' own sentences. similarities: of each candidate.
    """
    sizes = np.array([len(columns) for columns in found])
    columns = np.concatenate([*found, np.zeros(0, np.int64)]).astype(np.int64)
    scores = np.concatenate([*similarities, np.zeros(0)]) / _TEMPERATURE
    rows = np.repeat(np.arange(len(found)), sizes)
    wanted = np.minimum(sizes, number)[rows]
    potential = np.zeros(len(found))
    mean = min(number, columns.size / max(len(found), 1))
    for _ in range(_ROUNDS if columns.size else 0):
        weights = np.exp(scores + potential[columns])
        shares = wanted * weights / np.bincount(rows, weights, minlength=len(found))[rows]
        # A list uses a candidate at most once.
        used = np.bincount(columns, np.minimum(shares, 1), minlength=len(found))
        potential -= np.log((used + 0.5) / (mean + 0.5))
    # With Gumbel noise, the first of an order are a weighted sample without replacement.
    keys = scores + potential[columns] + randomness.gumbel(size=columns.size)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [np.argsort(-keys[starts[i] : starts[i + 1]], kind="stable") for i in range(len(found))]


def _scored_rows(
    texts: Sequence[str], group: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each text, indices and similarities of up to `_SEARCHED` texts of other groups, by decreasing TF-IDF similarity,
    above 0 and without near-duplicates. group: [n]
    """
    # Words in more than a twentieth of a large collection do not discriminate and cost the most.
    max_df = 0.05 if len(texts) >= 2000 else 1.0
    vectorizer = TfidfVectorizer(
        token_pattern=WORD.pattern, stop_words=sorted(word_classes.FUNCTION_WORDS), max_df=max_df, sublinear_tf=True
    )
    try:
        table = vectorizer.fit_transform(texts).T.tocsr()
    except ValueError:  # no text, or only function words: nothing is similar
        yield from ((np.zeros(0, np.int64), np.zeros(0)) for _ in texts)
        return
    for start in range(0, len(texts), _BLOCK):
        scores = (vectorizer.transform(texts[start : start + _BLOCK]) @ table).tocsr()
        for i in range(scores.shape[0]):
            part = slice(scores.indptr[i], scores.indptr[i + 1])
            columns, values = scores.indices[part], np.round(scores.data[part], 6)
            wanted = (values <= _MAX_SIMILARITY) & (group[columns] != group[start + i])
            columns, values = columns[wanted], values[wanted]
            if len(values) > _SEARCHED:
                edge = np.partition(values, len(values) - _SEARCHED)[len(values) - _SEARCHED]
                columns, values = columns[values >= edge], values[values >= edge]
            order = np.lexsort((columns, -values))[:_SEARCHED]
            yield columns[order].astype(np.int64), values[order]
