"""The nearest wrong captions and images of each image and caption, under the single encodings of the starting model.

Letters: C captions, I images, D size of a pooled vector, K nearest ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unimo_ds.config import RunConfig
from unimo_ds.evaluation.encode import Evaluable, encode
from unimo_ds.finetune.pairs import Pairs

Integers = NDArray[np.int64]
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Nearest:
    """Wrong answers only, best first."""

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
    """`number` nearest wrong ones of each, or as many as there are. A collective; the same on every rank."""
    texts_CD, images_ID = single_vectors(engine, pairs, config)
    image_of_C = torch.from_numpy(pairs.image_of_C).to(texts_CD.device)
    most_captions = int(np.bincount(pairs.image_of_C).max())
    images_CK = _nearest(texts_CD, images_ID, image_of_C, None, min(number, pairs.num_images - 1))
    captions_IK = _nearest(images_ID, texts_CD, None, image_of_C, min(number, pairs.num_captions - most_captions))
    return Nearest(images_CK, captions_IK)


def _nearest(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    image_of_query: torch.Tensor | None,
    image_of_candidate: torch.Tensor | None,
    number: int,
) -> Integers:
    """None: a query's or candidate's image is its own number."""
    of_candidate = torch.arange(len(candidates), device=queries.device)
    of_candidate = of_candidate if image_of_candidate is None else image_of_candidate
    found = []
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        rows = torch.arange(start, min(start + _ROWS_AT_ONCE, len(queries)), device=queries.device)
        own = rows if image_of_query is None else image_of_query[rows]
        scores = queries[rows] @ candidates.T
        scores[own[:, None] == of_candidate[None, :]] = -torch.inf
        # A stable order of equal scores, so that the choice does not depend on the machine.
        found.append(scores.argsort(dim=1, descending=True, stable=True)[:, :number].cpu().numpy())
    return np.concatenate(found).astype(np.int64)
