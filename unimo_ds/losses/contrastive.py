"""Cross-modal contrastive learning, CMCL (UNIMO section 2.1).

Every score is the cosine of one pooled [IMG] and one pooled [CLS] vector, whichever pass produced them: a joint encoding of
image and text, or two encodings alone. `ContrastTable` says which rows are scored and why. Three forms:

    one_log   (the paper's)  -log( (joint + single + related positives) / (those + joint negatives + in-batch) )
    two_logs                 -log( joint positives / (those + joint negatives) )
                             -log( (single + related positives) / (those + single negatives + in-batch) )
    log_each                 the two above with a logarithm for each positive, averaged: it alone against the same negatives

Joint scores can saturate the one logarithm and starve the single encodings that retrieval needs; two logarithms cannot. And
with a sum of positives inside, one good positive is enough: the others stop learning.

Letters: P local pairs, Q scores, D vector size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from unimo_ds.data.schema import ContrastTable, Level, SequenceRole
from unimo_ds.ops.contrastive import (
    NO_ITEM,
    Candidates,
    InBatch,
    SharedCandidates,
    multi_positive_loss,
    pair_scores,
)
from unimo_ds.ops.ring import RingCandidates
from unimo_ds.utils.communicator import Communicator

JOINT_POSITIVES = (SequenceRole.JOINT_PAIR, SequenceRole.JOINT_POSITIVE)
JOINT_NEGATIVES = (SequenceRole.JOINT_NEGATIVE,)
SINGLE_POSITIVES = (
    SequenceRole.SINGLE_IMAGE,
    SequenceRole.SINGLE_POSITIVE,
    SequenceRole.RELATED_IMAGE,
    SequenceRole.RELATED_TEXT,
)
SINGLE_NEGATIVES = (SequenceRole.SINGLE_NEGATIVE,)


@dataclass(frozen=True)
class ContrastiveResult:
    loss_sum: torch.Tensor
    """fp32 scalar, sum over this rank's pairs."""
    accuracies: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Named (number right, number asked) of this rank, without gradient."""


def contrastive_loss(
    images_ND: torch.Tensor,
    texts_ND: torch.Tensor,
    table: ContrastTable,
    *,
    temperature: torch.Tensor,
    form: Literal["one_log", "two_logs", "log_each"],
    in_batch: bool,
    communicator: Communicator,
    exchange: Literal["gather", "ring"] = "gather",
    path: str = "auto",
) -> ContrastiveResult:
    """CMCL over this rank's pairs against the pairs of all ranks.

    images_ND, texts_ND: pooled vectors, any float dtype; unit length is made here, in fp32 (fp64 stays fp64).
    temperature: scalar, differentiable. The sum over ranks of `loss_sum` and its gradient equal those of one process that
    holds all pairs; `communicator` brings the other ranks' images and texts, differentiably: all of them at once (`gather`),
    or the texts of one rank at a time (`ring`). path: see `ops.contrastive.choose_path`.
    """
    images_ND, texts_ND = _unit(images_ND), _unit(texts_ND)
    num_pairs = len(table.pair_image)
    score_Q = pair_scores(images_ND, texts_ND, table.score_image, table.score_text, path=path)
    shared = _SHARED[exchange](images_ND, texts_ND, table, communicator) if in_batch else None
    inverse_temperature = 1.0 / temperature.to(score_Q.dtype)

    def loss(
        positives: tuple[SequenceRole, ...], negatives: tuple[SequenceRole, ...], *, with_shared: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = _has_role(table.score_role, positives + negatives)
        return multi_positive_loss(
            score_Q[chosen],
            table.score_pair[chosen],
            _has_role(table.score_role[chosen], positives),
            num_pairs=num_pairs,
            shared=shared if with_shared else None,
            inverse_temperature=inverse_temperature,
            log_each=form == "log_each",
            path=path,
        )

    if form == "one_log":
        losses_P, best_P2 = loss(
            JOINT_POSITIVES + SINGLE_POSITIVES, JOINT_NEGATIVES + SINGLE_NEGATIVES, with_shared=True
        )
    else:
        joint_P, _ = loss(JOINT_POSITIVES, JOINT_NEGATIVES, with_shared=False)
        single_P, best_P2 = loss(SINGLE_POSITIVES, SINGLE_NEGATIVES, with_shared=True)
        losses_P = joint_P + single_P
    return ContrastiveResult(losses_P.sum(), _accuracies(score_Q.detach(), best_P2, table))


def _unit(vectors_ND: torch.Tensor) -> torch.Tensor:
    wide = vectors_ND if vectors_ND.dtype == torch.float64 else vectors_ND.float()
    return functional.normalize(wide, dim=-1)


def _has_role(roles: torch.Tensor, wanted: tuple[SequenceRole, ...]) -> torch.Tensor:
    return torch.isin(roles, torch.tensor([int(role) for role in wanted], device=roles.device))


@dataclass(frozen=True)
class _Brought:
    """What this rank brings of one modality."""

    candidates: Candidates
    """[n] its pairs' own first."""
    own: torch.Tensor
    """[P, k] keys of what each pair brings, padded with NO_ITEM."""


def _brought(
    images_ND: torch.Tensor, texts_ND: torch.Tensor, table: ContrastTable
) -> tuple[torch.Tensor, _Brought, _Brought]:
    """[P, 3] keys of the pairs; their single images and texts, with related ones and the positive rewrites that stand alone."""
    query_keys = torch.stack((table.pair_group, table.pair_image_key, table.pair_text_key), 1)

    def brought(
        vectors_ND: torch.Tensor,
        pair_row: torch.Tensor,
        pair_key: torch.Tensor,
        score_row: torch.Tensor,
        others: tuple[SequenceRole, ...],
    ) -> _Brought:
        chosen = _has_role(table.score_role, others)
        owner = torch.cat((torch.arange(len(pair_row), device=pair_row.device), table.score_pair[chosen]))
        rows = torch.cat((pair_row, score_row[chosen]))
        items = torch.cat((pair_key, table.score_key[chosen]))
        keys = torch.cat((query_keys[owner], items.unsqueeze(1)), 1)
        own = _items_by_owner(owner, items, num_owners=len(pair_row))
        return _Brought(Candidates(vectors_ND[rows], keys), own)

    images = brought(
        images_ND, table.pair_image, table.pair_image_key, table.score_image, (SequenceRole.RELATED_IMAGE,)
    )
    rewrites_and_related = (SequenceRole.RELATED_TEXT, SequenceRole.SINGLE_POSITIVE)
    texts = brought(texts_ND, table.pair_text, table.pair_text_key, table.score_text, rewrites_and_related)
    return query_keys, images, texts


def _gathered(
    images_ND: torch.Tensor, texts_ND: torch.Tensor, table: ContrastTable, communicator: Communicator
) -> InBatch:
    query_keys, images, texts = _brought(images_ND, texts_ND, table)

    def gathered(mine: Candidates) -> Candidates:
        counts = communicator.row_counts(len(mine.keys))
        return Candidates(
            vectors=communicator.all_gather_rows(mine.vectors, counts),
            keys=communicator.all_gather_rows(mine.keys, counts),
        )

    return SharedCandidates(
        query_images=images_ND[table.pair_image],
        query_texts=texts_ND[table.pair_text],
        query_keys=query_keys,
        own_images=images.own,
        own_texts=texts.own,
        images=gathered(images.candidates),
        texts=gathered(texts.candidates),
    )


def _in_a_ring(
    images_ND: torch.Tensor, texts_ND: torch.Tensor, table: ContrastTable, communicator: Communicator
) -> InBatch:
    _, images, texts = _brought(images_ND, texts_ND, table)
    return RingCandidates(
        images=images.candidates,
        texts=texts.candidates,
        own_images=images.own,
        own_texts=texts.own,
        communicator=communicator,
    )


_SHARED = {"gather": _gathered, "ring": _in_a_ring}


def _items_by_owner(owner_N: torch.Tensor, items_N: torch.Tensor, *, num_owners: int) -> torch.Tensor:
    """[num_owners, k] the items of each owner, padded with NO_ITEM."""
    order = torch.argsort(owner_N, stable=True)
    owner_N, items_N = owner_N[order], items_N[order]
    counts = torch.bincount(owner_N, minlength=num_owners)
    place = torch.arange(len(owner_N), device=owner_N.device) - (counts.cumsum(0) - counts)[owner_N]
    width = int(counts.max()) if num_owners else 1
    table = items_N.new_full((num_owners, width), NO_ITEM)
    table[owner_N, place] = items_N
    return table


@torch.no_grad()
def _accuracies(
    score_Q: torch.Tensor, best_P2: torch.Tensor, table: ContrastTable
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """How often the true pair outscores its hard negatives (by level), and the other images and texts of the step."""
    result = {}

    def own_scores(role: SequenceRole) -> torch.Tensor:
        chosen = table.score_role == role
        return score_Q.new_zeros(len(table.pair_image)).index_copy(0, table.score_pair[chosen], score_Q[chosen])

    own_joint, own_single = own_scores(SequenceRole.JOINT_PAIR), own_scores(SequenceRole.SINGLE_IMAGE)
    for name, role, own in (
        ("joint", SequenceRole.JOINT_NEGATIVE, own_joint),
        ("single", SequenceRole.SINGLE_NEGATIVE, own_single),
    ):
        for level in (Level.SENTENCE, Level.PHRASE, Level.WORD):
            asked = (table.score_role == role) & (table.score_level == level)
            right = own[table.score_pair[asked]] > score_Q[asked]
            result[f"hard_negative_{name}_{level.name.lower()}"] = (right.sum(), asked.sum())
    for column, name in enumerate(("image_to_text", "text_to_image")):
        asked = best_P2[:, column].isfinite()
        result[f"in_batch_{name}"] = ((own_single > best_P2[:, column])[asked].sum(), asked.sum())
    return result
