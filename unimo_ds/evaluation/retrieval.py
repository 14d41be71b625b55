"""Retrieval of images by captions and of captions by images: exact ranks on score matrices, recalls, joint re-ranking.

Letters: C captions, I images, K candidates, D size of a pooled vector. A caption belongs to one image; an image has one or more
captions. Ties, and scores that are not numbers, count against the model: a constant score has recall 0, not chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Integers = NDArray[np.int64]

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Results of both directions: fractions in [0, 1] and median ranks (1 is best)."""

    text_to_image: dict[int, float]
    """Recall at 1, 5 and 10: fraction of captions whose image is among the first k."""
    image_to_text: dict[int, float]
    """Fraction of images with at least one of their captions among the first k."""
    text_to_image_median_rank: float
    image_to_text_median_rank: float

    @property
    def mean_recall(self) -> float:
        """Mean of the six recalls."""
        return float(np.mean([*self.text_to_image.values(), *self.image_to_text.values()]))

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat names: `PREFIX/text_to_image/r@1`, ..., `PREFIX/mean_recall`."""
        result: dict[str, float] = {}
        for direction, recalls, median in (
            ("text_to_image", self.text_to_image, self.text_to_image_median_rank),
            ("image_to_text", self.image_to_text, self.image_to_text_median_rank),
        ):
            result |= {f"{prefix}/{direction}/r@{k}": value for k, value in recalls.items()}
            result[f"{prefix}/{direction}/median_rank"] = median
        return result | {f"{prefix}/mean_recall": self.mean_recall}


def cosine_scores(texts_CD: torch.Tensor, images_ID: torch.Tensor) -> Scores:
    """[C, I] float32 cosines; a zero vector scores 0 against everything."""
    texts = torch.nn.functional.normalize(texts_CD.float(), dim=-1)
    images = torch.nn.functional.normalize(images_ID.float(), dim=-1)
    scores: Scores = (texts @ images.T).cpu().numpy()
    return scores


def paired_cosines(texts_ND: torch.Tensor, images_ND: torch.Tensor) -> Scores:
    """[N] float32 cosine of each row with its counterpart."""
    cosines: Scores = torch.nn.functional.cosine_similarity(texts_ND.float(), images_ND.float(), dim=-1).cpu().numpy()
    return cosines


def text_to_image_ranks(scores_CI: Scores, image_of_C: Integers) -> Integers:
    """[C] rank of each caption's own image among all images: 1 + the number of other images not scored below it."""
    own_C1 = np.take_along_axis(scores_CI, image_of_C[:, None], axis=1)
    not_below_CI = ~(scores_CI < own_C1)
    np.put_along_axis(not_below_CI, image_of_C[:, None], False, axis=1)
    ranks_C: Integers = 1 + not_below_CI.sum(1, dtype=np.int64)
    return ranks_C


def image_to_text_ranks(scores_CI: Scores, image_of_C: Integers) -> Integers:
    """[I] rank of each image's best own caption: 1 + the number of other images' captions not scored below it.

    Raises:
        ValueError: an image without a caption.
    """
    num_images = scores_CI.shape[1]
    counts = np.bincount(image_of_C, minlength=num_images)
    if (counts == 0).any():
        raise ValueError(f"image {int(np.flatnonzero(counts == 0)[0])} has no caption")
    own_CI = image_of_C[:, None] == np.arange(num_images)[None, :]
    best_I = np.fmax.reduce(np.where(own_CI, scores_CI, np.float32(np.nan)), axis=0)
    not_below_CI = ~(scores_CI < best_I[None, :]) & ~own_CI
    ranks_I: Integers = 1 + not_below_CI.sum(0, dtype=np.int64)
    return ranks_I


def from_ranks(text_to_image: Integers, image_to_text: Integers) -> Retrieval:
    """Recalls and medians from the ranks of both directions; nan if there is nothing to rank."""
    return Retrieval(
        text_to_image=_recalls(text_to_image),
        image_to_text=_recalls(image_to_text),
        text_to_image_median_rank=_median(text_to_image),
        image_to_text_median_rank=_median(image_to_text),
    )


def from_scores(scores_CI: Scores, image_of_C: Integers) -> Retrieval:
    """Retrieval by one score per caption and image."""
    return from_ranks(text_to_image_ranks(scores_CI, image_of_C), image_to_text_ranks(scores_CI, image_of_C))


def best_candidates(scores_RN: Scores, num_candidates: int) -> Integers:
    """[R, K] columns of the highest scores of each row, best first; equal scores in column order."""
    return np.argsort(-scores_RN, axis=1, kind="stable")[:, :num_candidates].astype(np.int64)


def wanted_combinations(scores_CI: Scores, num_candidates: int) -> NDArray[np.bool_]:
    """[C, I] whether an image is among the best candidates of a caption, or the caption among those of the image."""
    wanted_CI = np.zeros(scores_CI.shape, bool)
    np.put_along_axis(wanted_CI, best_candidates(scores_CI, num_candidates), True, axis=1)
    np.put_along_axis(wanted_CI.T, best_candidates(scores_CI.T, num_candidates), True, axis=1)
    return wanted_CI


def reranked(
    first_ranks_R: Integers, candidates_RK: Integers, scores_RK: Scores, is_own_RK: NDArray[np.bool_]
) -> Integers:
    """[R] ranks after each row's candidates are reordered by a second score.

    first_ranks_R: ranks under the first score, kept by rows without a right answer among their candidates, the best under it.
    scores_RK: second scores of `candidates_RK`. is_own_RK: which candidates are right answers.

    Raises:
        ValueError: shapes that do not agree.
    """
    if not candidates_RK.shape == scores_RK.shape == is_own_RK.shape or len(first_ranks_R) != len(candidates_RK):
        raise ValueError(f"candidates {candidates_RK.shape}, scores {scores_RK.shape}, own {is_own_RK.shape} disagree")
    found_R = is_own_RK.any(1)
    masked_RK = np.where(is_own_RK, scores_RK, np.float32(np.nan))
    best_R = np.full(len(first_ranks_R), np.nan, np.float32)
    best_R[found_R] = np.fmax.reduce(masked_RK[found_R], axis=1)
    not_below_RK = ~(scores_RK < best_R[:, None]) & ~is_own_RK
    ranks_R: Integers = np.where(found_R, 1 + not_below_RK.sum(1, dtype=np.int64), first_ranks_R)
    return ranks_R


def _recalls(ranks: Integers) -> dict[int, float]:
    return {k: float((ranks <= k).mean()) if len(ranks) else float("nan") for k in RECALL_AT}


def _median(ranks: Integers) -> float:
    return float(np.median(ranks)) if len(ranks) else float("nan")
