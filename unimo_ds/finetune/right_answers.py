"""Which images and captions belong together: a caption text that two images share is right for both.

Letters: C captions, I images, Q either of them, N right answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.draws import ranges
from unimo_ds.evaluation.pair_reader import PairReader

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Right:
    """Right answers in one direction."""

    query_N: Integers
    """Ascending."""
    answer_N: Integers
    """Ascending for each query."""

    def of(self, query: int) -> Integers:
        """Ascending."""
        found: Integers = self.answer_N[slice(*np.searchsorted(self.query_N, (query, query + 1)))]
        return found

    def most(self) -> int:
        """The largest number of right answers of any query."""
        return int(np.bincount(self.query_N).max())


@dataclass(frozen=True)
class RightAnswers:
    """Each caption's own image, and other images that have a caption with the same text."""

    images: Right
    """For captions."""
    captions: Right
    """For images."""


def own_alone(pairs: PairReader) -> RightAnswers:
    """What is known without reading a caption: its own image."""
    return _both_ways(np.arange(pairs.num_texts), pairs.image_of_C)


def of_texts(text_keys_C: Integers, image_of_C: Integers) -> RightAnswers:
    """text_keys_C: equal for captions with the same text."""
    _, text_of_C = np.unique(text_keys_C, return_inverse=True)
    images_of_texts = np.unique(np.stack([text_of_C, image_of_C], 1), axis=0)
    starts = np.searchsorted(images_of_texts[:, 0], np.arange(len(images_of_texts) + 1))
    counts_C = starts[text_of_C + 1] - starts[text_of_C]
    captions_N = np.repeat(np.arange(len(image_of_C)), counts_C)
    return _both_ways(captions_N, images_of_texts[ranges(starts[text_of_C], counts_C), 1])


def _both_ways(captions_N: Integers, images_N: Integers) -> RightAnswers:
    by_image = np.argsort(images_N, kind="stable")
    return RightAnswers(Right(captions_N, images_N), Right(images_N[by_image], captions_N[by_image]))
