"""Multi-positive contrastive loss: log-sum-exps over private and shared candidates.

    loss_p = log sum over all candidates of p exp(score)  -  log sum over the positives of p exp(score)

(UNIMO section 2.1: one logarithm, sums inside.) Or one logarithm per positive, each against the negatives only:

    loss_p = mean over the positives q of p of  log( exp(score_q) + sum over the negatives of p exp(score) )  -  score_q

(the sum outside, as in equation 2 of Khosla et al. 2020, but without the other positives in the denominator: no positive can
rely on another's high score, or compete with it.)

Private candidates of a pair are few, ragged, and passed as scores: itself, its rewrites and its related items. Shared candidates
are the single encodings of other pairs' images and texts, related items and positive rewrites, scored in both directions. (If
other pairs' related items were left out, every related item with a score would be a positive, and could be told by its corpus.)

Letters: P local pairs, C candidates of all ranks, Q and R private scores, D vector size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from unimo_ds.ops import score_blocks
from unimo_ds.ops.grouping import Groups
from unimo_ds.ops.native import contrastive as native
from unimo_ds.ops.native import pairs
from unimo_ds.ops.paths import Path, choose
from unimo_ds.ops.score_blocks import Keys, Logs, allowed_negatives

NO_ITEM = -1
"""Padding of a pair's own items: no key is negative."""


@dataclass(frozen=True)
class Candidates:
    """Vectors of one modality from all ranks, and their owners."""

    vectors: torch.Tensor
    """[C, D] unit vectors."""
    keys: torch.Tensor
    """[C, 4] int64: group, owner's image key, owner's text key, key of the item itself."""


class PrivateScores(NamedTuple):
    """Scores of pairs with their private candidates."""

    scores: torch.Tensor
    """[R] fp32, cosines over the temperature."""
    pairs: Groups
    """The pair of each score."""
    has_any: torch.Tensor
    """[P] bool, whether a pair has any score."""


class Functions(NamedTuple):
    """What one path computes the loss with. All are differentiable except `gradients`."""

    pair_scores: Callable[[torch.Tensor, torch.Tensor, Groups, Groups], torch.Tensor]
    """See the function `pair_scores` below."""
    segment_log_sum_exp: Callable[[torch.Tensor, Groups], torch.Tensor]
    """[Q] values -> [P] log-sum-exp of each of P segments; -inf for an empty one."""
    log_sum_exp: Callable[[torch.Tensor], torch.Tensor]
    """[K, P] -> [P]; the gradient of a -inf is 0."""
    log_sum_exps: Callable[..., Logs]
    """See `score_blocks.log_sum_exps`."""
    gradients: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    """See `score_blocks.gradients`."""
    travelling: Callable[[torch.Tensor], torch.Tensor]
    """Vectors in the form in which ranks exchange them."""


class InBatch(Protocol):
    """Shared candidates, gathered or in a ring."""

    def log_sum_exps(
        self, inverse_temperature: torch.Tensor, functions: Functions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """([P] each pair's image over texts, [P] its text over images, [P, 2] the highest cosine of each)."""


@dataclass(frozen=True)
class SharedCandidates:
    """The images and texts of other pairs, all of them on this rank, and which are negatives of which pair."""

    query_images: torch.Tensor
    """[P, D] unit vectors."""
    query_texts: torch.Tensor
    """[P, D]"""
    query_keys: torch.Tensor
    """[P, 4] int64: group, image key, text key, NO_ITEM."""
    own_images: torch.Tensor
    """[P, k] int64, keys of the pair's own images (its own and related ones), padded with NO_ITEM."""
    own_texts: torch.Tensor
    """[P, k] int64, likewise for texts."""
    images: Candidates
    texts: Candidates

    def log_sum_exps(
        self, inverse_temperature: torch.Tensor, functions: Functions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `InBatch`."""

        def over(queries: torch.Tensor, candidates: Candidates, own_items: torch.Tensor) -> Logs:
            keys = Keys(self.query_keys, candidates.keys, own_items, candidates.keys[:, :0])
            return functions.log_sum_exps(queries, candidates.vectors, inverse_temperature, keys, both=False)

        texts = over(self.query_images, self.texts, self.own_texts)
        images = over(self.query_texts, self.images, self.own_images)
        return texts.rows, images.rows, torch.stack((texts.best_rows, images.best_rows), 1)


def functions_of(vectors: torch.Tensor, path: str) -> Functions:
    """The functions of `native` (CUDA kernels; fp32 vectors are rounded to fp16 there) or `tiled` (plain PyTorch); `auto` takes
    the first that can run.

    Raises:
        UserError: unknown path, or one that cannot run on these vectors.
    """
    return choose("contrastive_loss", path, _PATHS, vectors)


def pair_scores(
    left_ND: torch.Tensor, right_MD: torch.Tensor, left: Groups, right: Groups, *, path: str = "auto"
) -> torch.Tensor:
    """[Q] dot products of listed pairs of vectors, left[left.group_of] . right[right.group_of]; at least fp32.

    left, right: the scores grouped by their vector; vectors after the last group have none. path: see `functions_of`."""
    return functions_of(left_ND, path).pair_scores(left_ND, right_MD, left, right)


def reference(
    private_scores_Q: torch.Tensor,
    private_pair_Q: torch.Tensor,
    private_is_positive_Q: torch.Tensor,
    *,
    num_pairs: int,
    shared: SharedCandidates | None,
    inverse_temperature: torch.Tensor,
    log_each: bool = False,
) -> torch.Tensor:
    """The loss by its formula, one pair at a time; 0 for a pair without positives. Scores are cosines; the temperature is
    applied here. Returns [P]."""
    losses = []
    for pair in range(num_pairs):
        mine = private_pair_Q == pair
        positives = private_scores_Q[mine & private_is_positive_Q]
        if not len(positives):
            losses.append(private_scores_Q.sum() * 0)
            continue
        others = [private_scores_Q[mine & ~private_is_positive_Q]]
        if shared is not None:
            keys = shared.query_keys[pair : pair + 1]
            texts = allowed_negatives(keys, shared.own_texts[pair : pair + 1], shared.texts.keys)[0]
            images = allowed_negatives(keys, shared.own_images[pair : pair + 1], shared.images.keys)[0]
            others.append(shared.texts.vectors[texts] @ shared.query_images[pair])
            others.append(shared.images.vectors[images] @ shared.query_texts[pair])
        negatives = torch.cat(others)
        groups = positives.unsqueeze(1) if log_each else positives.unsqueeze(0)
        each = [
            torch.logsumexp(torch.cat((group, negatives)) * inverse_temperature, 0)
            - torch.logsumexp(group * inverse_temperature, 0)
            for group in groups
        ]
        losses.append(torch.stack(each).mean())
    return torch.stack(losses) if losses else private_scores_Q.new_zeros(0) + private_scores_Q.sum() * 0


def multi_positive_loss(
    positives: PrivateScores,
    negatives: PrivateScores,
    *,
    shared: InBatch | None,
    inverse_temperature: torch.Tensor,
    log_each: bool = False,
    path: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss per pair; the [P, C] score matrix exists only tile by tile.

    shared: None leaves in-batch negatives out. inverse_temperature: scalar fp32, differentiable. log_each: one logarithm per
    positive, averaged, instead of one for their sum. path: see `functions_of`.

    Returns:
        losses [P] fp32, 0 for a pair without positives; and [P, 2] the highest shared cosine of each pair's image against
        texts and of its text against images (-inf if there is none; no gradient), for accuracies.
    """
    functions = functions_of(positives.scores, path)
    parts = [functions.segment_log_sum_exp(negatives.scores, negatives.pairs)]
    if shared is None:
        best_P2 = parts[0].new_full((len(parts[0]), 2), -torch.inf)
    else:
        log_texts_P, log_images_P, best_P2 = shared.log_sum_exps(inverse_temperature, functions)
        parts += [log_texts_P, log_images_P]
    # One logsumexp over all: it gives a -inf the weight 0; nested logaddexp of two -inf would have a nan gradient.
    if log_each:
        scores_R, owner_R = positives.scores, positives.pairs.group_of
        losses_R = functions.log_sum_exp(torch.stack([scores_R, *(part[owner_R] for part in parts)])) - scores_R
        counts = positives.pairs.starts.diff().clamp(min=1)
        # index_add on a GPU is not deterministic.
        losses_P = losses_R.new_zeros(len(counts)).index_put((owner_R,), losses_R, accumulate=True) / counts
    else:
        log_positive_P = functions.segment_log_sum_exp(positives.scores, positives.pairs)
        losses_P = functions.log_sum_exp(torch.stack([log_positive_P, *parts])) - log_positive_P
    return torch.where(positives.has_any, losses_P, 0.0), best_P2


def _pair_scores(left_ND: torch.Tensor, right_MD: torch.Tensor, left: Groups, right: Groups) -> torch.Tensor:
    return (left_ND[left.group_of] * right_MD[right.group_of]).sum(-1)


def _segment_log_sum_exp(values_Q: torch.Tensor, segments: Groups) -> torch.Tensor:
    highest = values_Q.new_full((segments.num_groups,), -torch.inf)
    highest = highest.scatter_reduce(0, segments.group_of, values_Q.detach(), "amax")
    highest = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    shares_Q = torch.exp(values_Q - highest[segments.group_of])
    total = torch.zeros_like(highest).index_add(0, segments.group_of, shares_Q)
    return torch.log(total) + highest


def _log_sum_exp(values_KP: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(values_KP, 0)


def _as_they_are(vectors: torch.Tensor) -> torch.Tensor:
    return vectors


_NATIVE = Functions(
    pairs.pair_scores,
    pairs.segment_log_sum_exp,
    pairs.log_sum_exp,
    native.log_sum_exps,
    native.gradients,
    native.narrow,
)
_TILED = Functions(
    _pair_scores,
    _segment_log_sum_exp,
    _log_sum_exp,
    score_blocks.log_sum_exps,
    score_blocks.gradients,
    _as_they_are,
)
_PATHS = {"native": Path(_NATIVE, native.refusal), "tiled": Path(_TILED)}
