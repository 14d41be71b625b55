"""Multi-positive contrastive loss: log-sum-exps over private and shared candidates.

    loss_p = log sum over all candidates of p exp(score)  -  log sum over the positives of p exp(score)

(UNIMO section 2.1: one logarithm, sums inside.) Or a logarithm for each positive, among itself and the negatives alone:

    loss_p = mean over the positives q of p of  log( exp(score_q) + sum over the negatives of p exp(score) )  -  score_q

(the sum outside, as in equation 2 of Khosla et al. 2020, but without the other positives in the denominator: no positive can
rest on another one's score, or compete with it.)

Private candidates of a pair are few, ragged, and come as ready scores: its joint encodings and its related items. Shared
candidates are the images and texts of other pairs, with their related ones and positive rewrites encoded alone, scored in both
directions. (Without the related ones of others, a related item could be told by its corpus alone: every one that is scored
would be a positive.)

Letters: P local pairs, C candidate pairs of all ranks, Q private scores, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

ROWS_PER_TILE = 512

NO_ITEM = -1
"""Padding among a pair's own items: no key is negative."""


@dataclass(frozen=True)
class Candidates:
    """Vectors of one modality that all ranks bring, and to whom they belong."""

    vectors: torch.Tensor
    """[C, D] unit vectors."""
    keys: torch.Tensor
    """[C, 4] int64: group, owner's image key, owner's text key, key of the item itself."""


@dataclass(frozen=True)
class SharedCandidates:
    """The images and texts that other pairs bring, and who may be whose negative."""

    query_images: torch.Tensor
    """[P, D] unit vectors."""
    query_texts: torch.Tensor
    """[P, D]"""
    query_keys: torch.Tensor
    """[P, 3] int64: group, image key, text key."""
    own_images: torch.Tensor
    """[P, k] int64, keys of the images that the pair brings itself (its own and related ones), padded with NO_ITEM."""
    own_texts: torch.Tensor
    """[P, k] int64, likewise for texts."""
    images: Candidates
    texts: Candidates


def allowed_negatives(query_keys: torch.Tensor, own_items: torch.Tensor, candidate_keys: torch.Tensor) -> torch.Tensor:
    """[P, C] bool: the same group, an owner with another image and another text, and an item that is not the pair's own.

    A pair is never its own negative, nor is a pair with an equal caption, nor an item that is related to both.
    """
    query, candidate = query_keys.unsqueeze(1), candidate_keys.unsqueeze(0)
    return (
        (query[..., 0] == candidate[..., 0])
        & (query[..., 1] != candidate[..., 1])
        & (query[..., 2] != candidate[..., 2])
        & (own_items.unsqueeze(1) != candidate[..., 3:]).all(-1)
    )


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
    """The loss by its formula, one pair at a time; 0 for a pair without positives. Scores are cosines, the temperature is
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
    private_scores_Q: torch.Tensor,
    private_pair_Q: torch.Tensor,
    private_is_positive_Q: torch.Tensor,
    *,
    num_pairs: int,
    shared: SharedCandidates | None,
    inverse_temperature: torch.Tensor,
    log_each: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss per pair, tiled over rows so that no [P, C] score matrix outlives its tile.

    private_scores_Q: [Q] fp32 cosines. private_pair_Q: [Q] int64. private_is_positive_Q: [Q] bool.
    shared: None leaves in-batch negatives out. inverse_temperature: scalar fp32, differentiable. log_each: a logarithm for each
    positive instead of one for their sum.

    Returns:
        losses [P] fp32, 0 for a pair without positives; and [P, 2] the best shared cosine of each pair's image against texts
        and of its text against images (-inf where there is none; no gradient), for accuracies.
    """
    scores_Q = private_scores_Q * inverse_temperature
    positive = private_is_positive_Q
    owner_Q = private_pair_Q[positive]
    parts = [segment_log_sum_exp(scores_Q[~positive], private_pair_Q[~positive], num_pairs)]
    best_P2 = parts[0].new_full((num_pairs, 2), -torch.inf)
    if shared is not None:
        keys = shared.query_keys
        log_texts_P, best_text_P = _SharedLogSumExp.apply(  # type: ignore[no-untyped-call]
            shared.query_images, shared.texts.vectors, inverse_temperature, keys, shared.own_texts, shared.texts.keys
        )
        log_images_P, best_image_P = _SharedLogSumExp.apply(  # type: ignore[no-untyped-call]
            shared.query_texts, shared.images.vectors, inverse_temperature, keys, shared.own_images, shared.images.keys
        )
        best_P2 = torch.stack((best_text_P, best_image_P), 1)
        parts += [log_texts_P, log_images_P]
    if log_each:
        losses_P = _mean_of_each(scores_Q[positive], owner_Q, parts, num_pairs)
    else:
        log_positive_P = segment_log_sum_exp(scores_Q[positive], owner_Q, num_pairs)
        losses_P = _log_sum_exp([log_positive_P, *parts]) - log_positive_P
    has_positive_P = torch.zeros_like(losses_P, dtype=torch.bool).index_fill(0, owner_Q, True)
    return torch.where(has_positive_P, losses_P, 0.0), best_P2


def _mean_of_each(
    scores_R: torch.Tensor, owner_R: torch.Tensor, negatives: list[torch.Tensor], num_pairs: int
) -> torch.Tensor:
    """[P] mean over each pair's positives (scores_R, owner_R) of -log(their share among themselves and the negatives)."""
    losses_R = _log_sum_exp([scores_R, *(part[owner_R] for part in negatives)]) - scores_R
    counts = torch.bincount(owner_R, minlength=num_pairs).clamp(min=1)
    return losses_R.new_zeros(num_pairs).index_add(0, owner_R, losses_R) / counts


def _log_sum_exp(parts: list[torch.Tensor]) -> torch.Tensor:
    """Elementwise, in one logsumexp: its weight for a -inf is 0, where nested logaddexp of -inf would have a gradient of nan."""
    return torch.logsumexp(torch.stack(parts), 0)


def segment_log_sum_exp(values_Q: torch.Tensor, segment_Q: torch.Tensor, num_segments: int) -> torch.Tensor:
    """log sum exp of the values of each segment; -inf for an empty one. Returns [num_segments]."""
    highest = values_Q.new_full((num_segments,), -torch.inf)
    highest = highest.scatter_reduce(0, segment_Q, values_Q.detach(), "amax")
    highest = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    total = values_Q.new_zeros(num_segments).index_add(0, segment_Q, torch.exp(values_Q - highest[segment_Q]))
    return torch.log(total) + highest


class _SharedLogSumExp(torch.autograd.Function):
    """log sum exp over each query's allowed candidates; backward recomputes each tile's scores."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        candidates: torch.Tensor,
        inverse_temperature: torch.Tensor,
        query_keys: torch.Tensor,
        own_items: torch.Tensor,
        candidate_keys: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logs, bests = [queries.new_zeros(0)], [queries.new_zeros(0)]
        for rows in _tiles(len(queries)):
            scores = _allowed_scores(queries[rows], candidates, query_keys[rows], own_items[rows], candidate_keys)
            logs.append(torch.logsumexp(scores * inverse_temperature, 1))
            bests.append(scores.amax(1) if len(candidates) else scores.new_full((len(scores),), -torch.inf))
        log_P, best_P = torch.cat(logs), torch.cat(bests)
        ctx.save_for_backward(queries, candidates, inverse_temperature, query_keys, own_items, candidate_keys, log_P)
        ctx.mark_non_differentiable(best_P)
        return log_P, best_P

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_P = gradients[0]
        queries, candidates, inverse_temperature, query_keys, own_items, candidate_keys, log_P = ctx.saved_tensors
        to_queries, to_candidates = torch.zeros_like(queries), torch.zeros_like(candidates)
        to_inverse = torch.zeros_like(inverse_temperature)
        for rows in _tiles(len(queries)):
            scores = _allowed_scores(queries[rows], candidates, query_keys[rows], own_items[rows], candidate_keys)
            log_rows = log_P[rows].masked_fill(log_P[rows].isinf(), 0.0)
            weights = torch.exp(scores * inverse_temperature - log_rows[:, None]) * gradient_P[rows, None]
            to_inverse += (weights * scores.masked_fill(scores.isinf(), 0.0)).sum()
            weights = weights * inverse_temperature
            to_queries[rows] = weights @ candidates
            to_candidates += weights.T @ queries[rows]
        return to_queries, to_candidates, to_inverse, None, None, None


def _tiles(num_rows: int) -> list[slice]:
    return [slice(start, start + ROWS_PER_TILE) for start in range(0, num_rows, ROWS_PER_TILE)]


def _allowed_scores(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_keys: torch.Tensor,
    own_items: torch.Tensor,
    candidate_keys: torch.Tensor,
) -> torch.Tensor:
    """[rows, C] cosines, -inf where the candidate is no negative of the query."""
    return (queries @ candidates.T).masked_fill(~allowed_negatives(query_keys, own_items, candidate_keys), -torch.inf)
