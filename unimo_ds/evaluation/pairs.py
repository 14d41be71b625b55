"""Which pairs are evaluated: images, and which of their texts, from the index only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.schema import Kind, TextRole
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PairTexts:
    """Some texts of the chosen images. n texts."""

    image_n: Integers
    """[n] number of the image (0, 1, ...) that each text belongs to."""
    number_n: Integers
    """[n] position among the sample's texts, in the index's canonical order."""
    caption_n: Integers
    """[n] which caption of its image it is, or was made from."""
    level_n: Integers
    """[n] Level"""
    tokens_n: Integers
    """[n] token counts without specials."""

    def __len__(self) -> int:
        return len(self.image_n)


def choose_pairs(corpus: Corpus, *, num_pairs: int = 0) -> Integers:
    """Sample numbers of `num_pairs` pairs spread evenly over the corpus (0: all of them), always the same ones.

    Raises:
        UserError: the corpus holds no pairs.
    """
    pairs = np.flatnonzero(np.asarray(corpus.kinds) == Kind.PAIR).astype(np.int64)
    if not len(pairs):
        raise UserError(
            f"{corpus.location} holds no image-text pairs, so there is nothing to retrieve; give a folder with pairs"
        )
    return pairs[evenly(len(pairs), num_pairs)] if num_pairs > 0 else pairs


def evenly(total: int, number: int) -> Integers:
    """`number` numbers below `total`, evenly spaced; all of them if there are no more."""
    chosen = min(total, number)
    return np.arange(chosen, dtype=np.int64) * total // max(chosen, 1)


def find_unreadable(corpus: Corpus, samples: Integers, communicator: Communicator) -> dict[int, str]:
    """Which of `samples` cannot be read, and why: each rank tries its share, then all results are exchanged.

    A long run survives a damaged held-out sample only if every rank leaves it out before the first collective.
    """
    mine: dict[int, str] = {}
    for sample in samples[communicator.rank :: communicator.world_size].tolist():
        try:
            corpus.read(sample)
        except CorruptSample as error:
            mine[sample] = f"{error.key}: {error.reason}"
    everyone = communicator.all_gather_object(mine)
    return {sample: reason for found in everyone for sample, reason in found.items()}


def texts_of_pairs(corpus: Corpus, samples_I: Integers, role: TextRole) -> PairTexts:
    """The captions of these pairs, or their negative rewrites."""
    starts = np.asarray(corpus.text_start, np.int64)
    counts = starts[samples_I + 1] - starts[samples_I]
    image = np.repeat(np.arange(len(samples_I)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(starts[samples_I], counts) + number
    here = np.asarray(corpus.text_role)[at] == role
    return PairTexts(
        image_n=image[here],
        number_n=number[here],
        caption_n=np.asarray(corpus.text_caption)[at[here]].astype(np.int64),
        level_n=np.asarray(corpus.text_level)[at[here]].astype(np.int64),
        tokens_n=np.asarray(corpus.text_tokens)[at[here]].astype(np.int64),
    )
