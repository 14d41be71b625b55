"""The nearest wrong captions and images of each image and caption, under the single encodings of the starting model.

A caption that two images have is wrong for neither.

Letters: C captions, I images, D size of a pooled vector, K nearest ones, N right answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.data.draws import ranges
from unimo_ds.evaluation.encode import Evaluable, encode
from unimo_ds.finetune.pairs import Pairs

Integers = NDArray[np.int64]
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Nearest:
    """Wrong answers only, best first; -1 behind the last where there are fewer."""

    images_CK: Integers
    captions_IK: Integers


def single_vectors(engine: Evaluable, pairs: Pairs, config: RunConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of all captions [C, D] and images [I, D], each encoded alone. A collective."""
    feature_size, budget = config.model.region_feature_size, config.batch.micro_batch_tokens
    image_lengths = np.array([pairs.image_length(image) for image in range(pairs.num_images)], np.int64)
    text_lengths = np.array([pairs.text_length(caption) for caption in range(pairs.num_captions)], np.int64)
    images = encode(engine, image_lengths, pairs.image_sequence, micro_batch_tokens=budget, feature_size=feature_size)
    texts = encode(engine, text_lengths, pairs.text_sequence, micro_batch_tokens=budget, feature_size=feature_size)
    return functional.normalize(texts.texts_nD, dim=1), functional.normalize(images.images_nD, dim=1)


def nearest(engine: Evaluable, pairs: Pairs, config: RunConfig, *, number: int) -> Nearest:
    """`number` nearest wrong ones of each, or as many as there are. A collective; the same on every rank: rank 0 finds them, as
    other processors may round otherwise."""
    texts_CD, images_ID = single_vectors(engine, pairs, config)
    found = None
    if engine.communicator.rank == 0:
        captions_N, images_N = right_answers(pairs.text_keys(), pairs.image_of_C)
        by_image = np.argsort(images_N, kind="stable")
        found = Nearest(
            _nearest(texts_CD, images_ID, captions_N, images_N, number),
            _nearest(images_ID, texts_CD, images_N[by_image], captions_N[by_image], number),
        )
    of_rank_0: Nearest = engine.communicator.broadcast_object(found)
    return of_rank_0


def right_answers(text_keys_C: Integers, image_of_C: Integers) -> tuple[Integers, Integers]:
    """[N] captions, ascending, and [N] images that have a caption of the same text: each caption's own, and sometimes others."""
    _, text_of_C = np.unique(text_keys_C, return_inverse=True)
    of_texts = np.unique(np.stack([text_of_C, image_of_C], 1), axis=0)
    starts = np.searchsorted(of_texts[:, 0], np.arange(len(of_texts) + 1))
    counts_C = starts[text_of_C + 1] - starts[text_of_C]
    return np.repeat(np.arange(len(image_of_C)), counts_C), of_texts[ranges(starts[text_of_C], counts_C), 1]


def _nearest(
    queries: torch.Tensor, candidates: torch.Tensor, query_of_N: Integers, right_N: Integers, number: int
) -> Integers:
    """[queries, K] candidates by falling score, -1 in place of the right ones, which are last. query_of_N: ascending, with
    right_N all right answers."""
    number = min(number, len(candidates))
    found = []
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(queries))
        scores = queries[start:stop] @ candidates.T
        here = slice(*np.searchsorted(query_of_N, (start, stop)))
        scores[torch.from_numpy(query_of_N[here] - start), torch.from_numpy(right_N[here])] = -torch.inf
        # A stable order of equal scores, so that the choice does not depend on the machine.
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :number]
        found.append(torch.where(scores.gather(1, best) == -torch.inf, -1, best).cpu().numpy())
    return np.concatenate(found).astype(np.int64)
