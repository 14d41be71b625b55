"""Cross-modal contrastive learning, CMCL (UNIMO section 2.1).

Every score is the cosine of one pooled [IMG] and one pooled [CLS] vector, whichever pass produced them: one joint encoding of
image and text, or two single encodings. A pair's private scores are with itself, its rewrites and its related items. Shared ones
are its image against the other texts of its group, and its text against the other images.

The way of a score: the loader's `ContrastTable` says which rows are scored and why; `contrast_plan.py` turns it into lists of
rows on the host; `contrastive_loss`, here, scores private candidates and brings those of other ranks; `ops/contrastive.py` takes
the logarithms of the sums. Three forms:

    one_log   (the paper's)  -log( (joint + single + related positives) / (those + joint negatives + in-batch) )
    two_logs                 -log( joint positives / (those + joint negatives) )
                             -log( (single + related positives) / (those + single negatives + in-batch) )
    log_each                 as two_logs, but one term per positive, averaged: that positive alone against the same negatives

CLIP averages two InfoNCE losses; here one denominator holds both directions: "in-batch" are the other texts against the image
and the other images against its text.

In one_log, joint scores can saturate the loss and starve the single encodings that retrieval needs; in two_logs they cannot. And
with a sum of positives inside the logarithm one good positive is enough: the others stop learning.

Letters: P local pairs, Q private scores, M of these for negative rewrites, N vectors of a modality, D vector size,
A accuracies; P2: for each pair, image to text and text to image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from unimo_ds.losses.contrast_plan import HARD_NEGATIVES, ContrastPlan
from unimo_ds.ops.contrastive import (
    Candidates,
    InBatch,
    PrivateScores,
    SharedCandidates,
    multi_positive_loss,
    pair_scores,
)
from unimo_ds.ops.ring import RingCandidates
from unimo_ds.utils.communicator import Communicator

ACCURACIES = (*HARD_NEGATIVES, "in_batch_image_to_text", "in_batch_text_to_image")


@dataclass(frozen=True)
class ContrastiveResult:
    loss_sum: torch.Tensor
    """fp32 scalar, sum over this rank's pairs."""
    right: torch.Tensor
    """[A] fp64, correct comparisons on this rank, one entry per name in ACCURACIES; without gradient."""
    asked: torch.Tensor
    """[A] fp64, all comparisons."""


def contrastive_loss(
    images_ND: torch.Tensor,
    texts_ND: torch.Tensor,
    plan: ContrastPlan,
    *,
    temperature: torch.Tensor,
    form: Literal["one_log", "two_logs", "log_each"],
    in_batch: bool,
    communicator: Communicator,
    exchange: Literal["gather", "ring"] = "gather",
    path: str = "auto",
) -> ContrastiveResult:
    """CMCL over this rank's pairs against the pairs of all ranks. The host never waits for the GPU.

    images_ND, texts_ND: pooled vectors, any float dtype; normalised here, in fp32 (fp64 stays fp64).
    plan: on their device. temperature: scalar, differentiable. The sum over ranks of `loss_sum` and its gradient equal those of
    one process that holds all pairs; `communicator` brings the other ranks' images and texts, differentiably: all of them at
    once (`gather`), or the texts of one rank at a time (`ring`). path: see `ops.contrastive.functions_of`.
    """
    images_ND, texts_ND = _unit(images_ND), _unit(texts_ND)
    score_Q = pair_scores(images_ND, texts_ND, plan.score_images, plan.score_texts, path=path)
    shared = _SHARED[exchange](images_ND, texts_ND, plan, communicator) if in_batch else None
    inverse_temperature = 1.0 / temperature.to(score_Q.dtype)
    scaled = torch.split(score_Q * inverse_temperature, plan.part_sizes)
    # one_log: positives, negatives; the others: as they are unpacked below.
    parts = map(PrivateScores, scaled, plan.parts, plan.has_any)

    def loss(
        positives: PrivateScores, negatives: PrivateScores, *, with_shared: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return multi_positive_loss(
            positives,
            negatives,
            shared=shared if with_shared else None,
            inverse_temperature=inverse_temperature,
            log_each=form == "log_each",
            path=path,
        )

    if form == "one_log":
        losses_P, best_P2 = loss(*parts, with_shared=True)
    else:
        single_positives, joint_positives, joint_negatives, single_negatives = parts
        joint_P, _ = loss(joint_positives, joint_negatives, with_shared=False)
        single_P, best_P2 = loss(single_positives, single_negatives, with_shared=True)
        losses_P = joint_P + single_P
    return ContrastiveResult(losses_P.sum(), *_accuracies(score_Q.detach(), best_P2, plan))


def _unit(vectors_ND: torch.Tensor) -> torch.Tensor:
    wide = vectors_ND if vectors_ND.dtype == torch.float64 else vectors_ND.float()
    return functional.normalize(wide, dim=-1)


def _candidates(images_ND: torch.Tensor, texts_ND: torch.Tensor, plan: ContrastPlan) -> tuple[Candidates, Candidates]:
    return (
        Candidates(images_ND.index_select(0, plan.images.rows), plan.images.keys),
        Candidates(texts_ND.index_select(0, plan.texts.rows), plan.texts.keys),
    )


def _gathered(
    images_ND: torch.Tensor, texts_ND: torch.Tensor, plan: ContrastPlan, communicator: Communicator
) -> InBatch:
    images, texts = _candidates(images_ND, texts_ND, plan)

    def gathered(mine: Candidates, counts: Sequence[int]) -> Candidates:
        return Candidates(
            vectors=communicator.all_gather_rows(mine.vectors, counts),
            keys=communicator.all_gather_rows(mine.keys, counts),
        )

    return SharedCandidates(
        query_images=images.vectors[: plan.num_pairs],
        query_texts=texts.vectors[: plan.num_pairs],
        query_keys=plan.pair_keys,
        own_images=plan.images.own,
        own_texts=plan.texts.own,
        images=gathered(images, plan.images.counts),
        texts=gathered(texts, plan.texts.counts),
    )


def _in_a_ring(
    images_ND: torch.Tensor, texts_ND: torch.Tensor, plan: ContrastPlan, communicator: Communicator
) -> InBatch:
    images, texts = _candidates(images_ND, texts_ND, plan)
    return RingCandidates(
        images=images,
        texts=texts,
        own_images=plan.images.own,
        own_texts=plan.texts.own,
        text_counts=plan.texts.counts,
        communicator=communicator,
    )


_SHARED = {"gather": _gathered, "ring": _in_a_ring}


@torch.no_grad()
def _accuracies(score_Q: torch.Tensor, best_P2: torch.Tensor, plan: ContrastPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """How often the true pair outscores its rewrites (by level), and the other images and texts of the step.

    best_P2: highest score of the others; -inf where there are none. Returns `right` and `asked` of `ContrastiveResult`.
    """
    scores = functional.pad(score_Q, (0, 1))  # where a pair has no such score, it counts as 0
    rewrites_M = score_Q[len(score_Q) - len(plan.counterpart) :]  # the plan puts negative rewrites last
    right_M = (scores[plan.counterpart] > rewrites_M).double()
    counts = right_M.new_zeros(2, len(HARD_NEGATIVES) + 1)
    by_rewrites = counts.index_add_(1, plan.accuracy, torch.stack((right_M, torch.ones_like(right_M))))[:, :-1]
    is_asked_P2 = best_P2.isfinite()
    is_right_P2 = is_asked_P2 & (scores[plan.own_score].unsqueeze(1) > best_P2)
    right, asked = torch.cat((by_rewrites, torch.stack((is_right_P2, is_asked_P2)).double().sum(1)), 1)
    return right, asked
