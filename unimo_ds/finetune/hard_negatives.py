"""The nearest wrong captions of each image, and wrong images of each caption, by the starting model's single encodings.

Letters: C captions, I images, D size of a pooled vector, K nearest ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unimo_ds.evaluation.encode import Evaluable
from unimo_ds.evaluation.measure import encode_images, encode_texts
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.finetune.right_answers import Right, RightAnswers

Integers = NDArray[np.int64]
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Nearest:
    """Wrong answers only, best first; padded with -1 if there are fewer."""

    images_CK: Integers
    captions_IK: Integers


def nearest(engine: Evaluable, pairs: PairReader, answers: RightAnswers, *, number: int) -> Nearest:
    """The `number` nearest wrong ones of each, or as many as exist. A collective; the result is the same on every rank: rank 0
    computes it, because other processors may round differently."""
    images_ID = functional.normalize(encode_images(engine, pairs), dim=1)
    texts_CD = functional.normalize(encode_texts(engine, pairs), dim=1)
    found = None
    if engine.communicator.rank == 0:
        found = Nearest(
            _nearest(texts_CD, images_ID, answers.images, number),
            _nearest(images_ID, texts_CD, answers.captions, number),
        )
    of_rank_0: Nearest = engine.communicator.broadcast_object(found)
    return of_rank_0


def _nearest(queries: torch.Tensor, candidates: torch.Tensor, right: Right, number: int) -> Integers:
    """[queries, K] candidates by descending score, -1 in place of the right ones, which come last."""
    number = min(number, len(candidates))
    found = []
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(queries))
        scores = queries[start:stop] @ candidates.T
        here = slice(*np.searchsorted(right.query_N, (start, stop)))
        scores[torch.from_numpy(right.query_N[here] - start), torch.from_numpy(right.answer_N[here])] = -torch.inf
        # A stable sort, so that the choice among equal scores does not depend on the machine.
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :number]
        found.append(torch.where(scores.gather(1, best) == -torch.inf, -1, best).cpu().numpy())
    return np.concatenate(found).astype(np.int64)
