"""Multi-positive contrastive loss: two log-sum-exps over private and shared candidates.

    loss_p = log sum over all candidates of p exp(score)  -  log sum over the positives of p exp(score)

(UNIMO section 2.1: one logarithm, sums inside.) Private candidates of a pair are few, ragged, and come as ready scores: its
joint encodings and its related items. Shared candidates are the images and texts of other pairs, with their related ones
and positive rewrites encoded alone, scored in both directions. (Without the related ones of others, a related item could be
told by its corpus alone: every one that is scored would be a positive.)

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
        every = [private_scores_Q[mine]]
        if shared is not None:
            keys = shared.query_keys[pair : pair + 1]
            texts = allowed_negatives(keys, shared.own_texts[pair : pair + 1], shared.texts.keys)[0]
            images = allowed_negatives(keys, shared.own_images[pair : pair + 1], shared.images.keys)[0]
            every.append(shared.texts.vectors[texts] @ shared.query_images[pair])
            every.append(shared.images.vectors[images] @ shared.query_texts[pair])
        log_all = torch.logsumexp(torch.cat(every) * inverse_temperature, 0)
        losses.append(log_all - torch.logsumexp(positives * inverse_temperature, 0))
    return torch.stack(losses) if losses else private_scores_Q.new_zeros(0) + private_scores_Q.sum() * 0


def multi_positive_loss(
    private_scores_Q: torch.Tensor,
    private_pair_Q: torch.Tensor,
    private_is_positive_Q: torch.Tensor,
    *,
    num_pairs: int,
    shared: SharedCandidates | None,
    inverse_temperature: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss per pair, tiled over rows so that no [P, C] score matrix outlives its tile.

    private_scores_Q: [Q] fp32 cosines. private_pair_Q: [Q] int64. private_is_positive_Q: [Q] bool.
    shared: None leaves in-batch negatives out. inverse_temperature: scalar fp32, differentiable.

    Returns:
        losses [P] fp32, 0 for a pair without positives; and [P, 2] the best shared cosine of each pair's image against texts
        and of its text against images (-inf where there is none; no gradient), for accuracies.
    """
    scores_Q = private_scores_Q * inverse_temperature
    log_all_P = segment_log_sum_exp(scores_Q, private_pair_Q, num_pairs)
    positive = private_is_positive_Q
    log_positive_P = segment_log_sum_exp(scores_Q[positive], private_pair_Q[positive], num_pairs)
    best_P2 = log_all_P.new_full((num_pairs, 2), -torch.inf)
    if shared is not None:
        keys = shared.query_keys
        log_texts_P, best_text_P = _SharedLogSumExp.apply(  # type: ignore[no-untyped-call]
            shared.query_images, shared.texts.vectors, inverse_temperature, keys, shared.own_texts, shared.texts.keys
        )
        log_images_P, best_image_P = _SharedLogSumExp.apply(  # type: ignore[no-untyped-call]
            shared.query_texts, shared.images.vectors, inverse_temperature, keys, shared.own_images, shared.images.keys
        )
        best_P2 = torch.stack((best_text_P, best_image_P), 1)
        # One logsumexp: its weight for a -inf is 0, where two nested logaddexp of -inf would have a gradient of nan.
        log_all_P = torch.logsumexp(torch.stack((log_all_P, log_texts_P, log_images_P)), 0)
    has_positive_P = torch.zeros_like(log_all_P, dtype=torch.bool)
    has_positive_P[private_pair_Q[positive]] = True
    return torch.where(has_positive_P, log_all_P - log_positive_P, 0.0), best_P2


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
