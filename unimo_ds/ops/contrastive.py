"""Multi-positive contrastive loss: two log-sum-exps over private and shared candidates.

    loss_p = log sum over all candidates of p exp(score)  -  log sum over the positives of p exp(score)

(UNIMO section 2.1: one logarithm, sums inside.) Private candidates of a pair are few, ragged, and come as ready scores: its
joint encodings and its related items. Shared candidates are the images and texts of other pairs, scored in both directions.

Letters: P local pairs, C candidate pairs of all ranks, Q private scores, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

ROWS_PER_TILE = 512


@dataclass(frozen=True)
class SharedCandidates:
    """The images and texts that other pairs bring, and who may be whose negative."""

    query_images: torch.Tensor
    """[P, D] unit vectors."""
    query_texts: torch.Tensor
    """[P, D]"""
    candidate_images: torch.Tensor
    """[C, D]"""
    candidate_texts: torch.Tensor
    """[C, D]"""
    query_keys: torch.Tensor
    """[P, 3] int64: group, image key, text key."""
    candidate_keys: torch.Tensor
    """[C, 3] int64"""


def allowed_negatives(query_keys: torch.Tensor, candidate_keys: torch.Tensor) -> torch.Tensor:
    """[P, C] bool: same group, another image, another text. A pair is never its own negative, nor is an equal caption."""
    query, candidate = query_keys.unsqueeze(1), candidate_keys.unsqueeze(0)
    return (
        (query[..., 0] == candidate[..., 0])
        & (query[..., 1] != candidate[..., 1])
        & (query[..., 2] != candidate[..., 2])
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
    """The loss by its formula, one pair at a time. Scores are cosines; the temperature is applied here. Returns [P]."""
    losses = []
    allowed = None if shared is None else allowed_negatives(shared.query_keys, shared.candidate_keys)
    for pair in range(num_pairs):
        mine = private_pair_Q == pair
        positives = private_scores_Q[mine & private_is_positive_Q]
        every = [private_scores_Q[mine]]
        if shared is not None and allowed is not None:
            every.append((shared.candidate_texts @ shared.query_images[pair])[allowed[pair]])
            every.append((shared.candidate_images @ shared.query_texts[pair])[allowed[pair]])
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
        losses [P] fp32, and [P, 2] the best shared cosine of each pair's image against texts and of its text against
        images (-inf where there is none; no gradient), for accuracies.
    """
    scores_Q = private_scores_Q * inverse_temperature
    log_all_P = segment_log_sum_exp(scores_Q, private_pair_Q, num_pairs)
    positive = private_is_positive_Q
    log_positive_P = segment_log_sum_exp(scores_Q[positive], private_pair_Q[positive], num_pairs)
    best_P2 = log_all_P.new_full((num_pairs, 2), -torch.inf)
    if shared is not None:
        log_shared_P, best_P2 = _SharedLogSumExp.apply(  # type: ignore[no-untyped-call]
            shared.query_images,
            shared.query_texts,
            shared.candidate_images,
            shared.candidate_texts,
            inverse_temperature,
            shared.query_keys,
            shared.candidate_keys,
        )
        log_all_P = torch.logaddexp(log_all_P, log_shared_P)
    return log_all_P - log_positive_P, best_P2


def segment_log_sum_exp(values_Q: torch.Tensor, segment_Q: torch.Tensor, num_segments: int) -> torch.Tensor:
    """log sum exp of the values of each segment; -inf for an empty one. Returns [num_segments]."""
    highest = values_Q.new_full((num_segments,), -torch.inf)
    highest = highest.scatter_reduce(0, segment_Q, values_Q.detach(), "amax")
    highest = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    total = values_Q.new_zeros(num_segments).index_add(0, segment_Q, torch.exp(values_Q - highest[segment_Q]))
    return torch.log(total) + highest


class _SharedLogSumExp(torch.autograd.Function):
    """log sum exp over allowed candidates in both directions; backward recomputes each tile's scores."""

    @staticmethod
    def forward(
        ctx: Any,
        query_images: torch.Tensor,
        query_texts: torch.Tensor,
        candidate_images: torch.Tensor,
        candidate_texts: torch.Tensor,
        inverse_temperature: torch.Tensor,
        query_keys: torch.Tensor,
        candidate_keys: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logs, bests = [], []
        for start in range(0, len(query_images), ROWS_PER_TILE):
            rows = slice(start, start + ROWS_PER_TILE)
            scores = _tile(query_images[rows], query_texts[rows], candidate_images, candidate_texts)
            blocked = ~allowed_negatives(query_keys[rows], candidate_keys)
            scores = scores.masked_fill(blocked.unsqueeze(1), -torch.inf)
            logs.append(torch.logsumexp((scores * inverse_temperature).flatten(1), 1))
            bests.append(scores.amax(-1))
        log_P = torch.cat(logs) if logs else query_images.new_zeros(0)
        best_P2 = torch.cat(bests) if bests else query_images.new_zeros(0, 2)
        ctx.save_for_backward(
            query_images,
            query_texts,
            candidate_images,
            candidate_texts,
            inverse_temperature,
            query_keys,
            candidate_keys,
            log_P,
        )
        ctx.mark_non_differentiable(best_P2)
        return log_P, best_P2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_P = gradients[0]
        (
            query_images,
            query_texts,
            candidate_images,
            candidate_texts,
            inverse_temperature,
            query_keys,
            candidate_keys,
            log_P,
        ) = ctx.saved_tensors
        to_query_images, to_query_texts = torch.zeros_like(query_images), torch.zeros_like(query_texts)
        to_candidate_images = torch.zeros_like(candidate_images)
        to_candidate_texts = torch.zeros_like(candidate_texts)
        to_inverse = torch.zeros_like(inverse_temperature)
        for start in range(0, len(query_images), ROWS_PER_TILE):
            rows = slice(start, start + ROWS_PER_TILE)
            scores = _tile(query_images[rows], query_texts[rows], candidate_images, candidate_texts)
            blocked = ~allowed_negatives(query_keys[rows], candidate_keys)
            log_rows = log_P[rows].masked_fill(log_P[rows].isinf(), 0.0)
            weights = torch.exp(scores * inverse_temperature - log_rows[:, None, None])
            weights = weights.masked_fill(blocked.unsqueeze(1), 0.0) * gradient_P[rows, None, None]
            to_inverse += (weights * scores).sum()
            weights = weights * inverse_temperature
            image_to_text, text_to_image = weights[:, 0], weights[:, 1]
            to_query_images[rows] = image_to_text @ candidate_texts
            to_query_texts[rows] = text_to_image @ candidate_images
            to_candidate_texts += image_to_text.T @ query_images[rows]
            to_candidate_images += text_to_image.T @ query_texts[rows]
        return to_query_images, to_query_texts, to_candidate_images, to_candidate_texts, to_inverse, None, None


def _tile(
    query_images: torch.Tensor,
    query_texts: torch.Tensor,
    candidate_images: torch.Tensor,
    candidate_texts: torch.Tensor,
) -> torch.Tensor:
    """[rows, 2, C] cosines: images against texts, texts against images."""
    return torch.stack((query_images @ candidate_texts.T, query_texts @ candidate_images.T), 1)
