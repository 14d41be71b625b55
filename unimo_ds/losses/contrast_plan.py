"""Which rows each term of the contrastive loss uses: all that a `ContrastTable` decides before any vector is computed.

Made on the host. With a boolean mask on the GPU, the number of selected rows would be known only once all work queued before it
is done, and while the host waits for that the GPU runs dry. So choices become lists of rows here, and devices get the lists.

Letters: P local pairs, Q scores, M of these for negatives, n candidates of one modality, k items of a pair.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unimo_ds.data.schema import ContrastTable, Level, PackedBatch, SequenceRole
from unimo_ds.ops.contrastive import NO_ITEM
from unimo_ds.ops.grouping import Groups, group_on_host
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.moving import moved

_ROLES = (
    SequenceRole.SINGLE_IMAGE,
    SequenceRole.RELATED_IMAGE,
    SequenceRole.SINGLE_POSITIVE,
    SequenceRole.RELATED_TEXT,
    SequenceRole.JOINT_PAIR,
    SequenceRole.JOINT_POSITIVE,
    SequenceRole.JOINT_NEGATIVE,
    SequenceRole.SINGLE_NEGATIVE,
)
"""The order of scores by role: single positives, joint positives, then negatives, so that each sum's are adjacent."""
_PLACE = np.full(len(SequenceRole), -1)
_PLACE[list(_ROLES)] = np.arange(len(_ROLES))

_OTHER_IMAGES = (SequenceRole.RELATED_IMAGE,)
_OTHER_TEXTS = (SequenceRole.SINGLE_POSITIVE, SequenceRole.RELATED_TEXT)
"""Roles, adjacent in `_ROLES`, of the candidates that a pair brings besides its own image and text."""

Integers = NDArray[np.int64]

_LEVELS = (Level.SENTENCE, Level.PHRASE, Level.WORD)
HARD_NEGATIVES = tuple(
    f"hard_negative_{form}_{level.name.lower()}" for form in ("joint", "single") for level in _LEVELS
)
"""Names of the accuracies against rewrites, by their encoding and by their level."""


@dataclass(frozen=True)
class LocalCandidates:
    """This rank's candidates of one modality: its pairs' own, then related items and positive rewrites encoded singly."""

    rows: torch.Tensor
    """[n] int64, rows of the pooled vectors; the first P are the pairs' own."""
    keys: torch.Tensor
    """[n, 4] int64; see `ops.contrastive.Candidates`."""
    own: torch.Tensor
    """[P, k] int64, keys of each pair's own items, padded with NO_ITEM; k is the same on all ranks."""
    counts: tuple[int, ...]
    """n of each rank."""


@dataclass(frozen=True)
class ContrastPlan:
    """Lists of rows for the device, with their lengths on the host."""

    part_sizes: list[int]
    """Number of the Q scores in each of `parts`, which follow one another."""
    score_images: Groups
    """The scores grouped by row of the pooled images."""
    score_texts: Groups
    """The scores grouped by row of the pooled texts."""
    parts: tuple[Groups, ...]
    """Grouped by pair: the positives, then the negatives; if single and joint encodings have separate logarithms, the single
    positives, the joint positives, the joint negatives, the single negatives."""
    has_any: torch.Tensor
    """[parts, P] bool, whether a pair has any score of a part."""
    own_score: torch.Tensor
    """[P] int64, index of the score of the pair's single encodings; Q: none."""
    counterpart: torch.Tensor
    """[M] int64, index of the score that each negative must stay below: the pair's own, encoded likewise; Q: none."""
    accuracy: torch.Tensor
    """[M] int64, index in HARD_NEGATIVES that each negative counts for; its length: none."""
    pair_keys: torch.Tensor
    """[P, 4] int64: group, image key, text key, NO_ITEM."""
    images: LocalCandidates
    texts: LocalCandidates

    @property
    def num_pairs(self) -> int:
        return len(self.own_score)

    def to(self, device: torch.device) -> ContrastPlan:
        """The same lists on `device`; the copies do not wait for its queued work."""
        return moved(self, device)


class CandidateSizes(NamedTuple):
    """What ranks must know of each other's candidates of one modality."""

    counts: tuple[int, ...]
    """Number of candidates of each rank."""
    width: int
    """The most items of a pair, on any rank."""


def join_tables(batches: Sequence[PackedBatch]) -> ContrastTable:
    """One table over a rank's micro-batches, whose pooled vectors are concatenated in the same order."""
    tables = [batch.contrast for batch in batches]
    images = [len(batch.pooled_image_at) for batch in batches]
    texts = [len(batch.pooled_text_at) for batch in batches]
    pairs = [len(table.pair_image) for table in tables]
    counted = {
        "pair_image": images,
        "pair_text": texts,
        "score_pair": pairs,
        "score_image": images,
        "score_text": texts,
    }

    def joined(name: str) -> torch.Tensor:
        starts = itertools.accumulate(counted.get(name, [0] * len(tables)), initial=0)
        return torch.cat([getattr(table, name) + start for table, start in zip(tables, starts, strict=False)])

    return ContrastTable(**{field.name: joined(field.name) for field in dataclasses.fields(ContrastTable)})


def share_sizes(table: ContrastTable, communicator: Communicator) -> tuple[CandidateSizes, CandidateSizes]:
    """Of images and texts. A collective, and all that a plan needs of other ranks. table: as in `make_plan`."""
    pair, role = table.score_pair.numpy(), table.score_role.numpy()
    others = [pair[np.isin(role, roles)] for roles in (_OTHER_IMAGES, _OTHER_TEXTS)]
    num_pairs = len(table.pair_image)
    mine = [(num_pairs + len(owners), 1 + int(np.bincount(owners, minlength=1).max())) for owners in others]
    of_ranks = communicator.all_gather_rows(
        torch.tensor([mine], dtype=torch.int64, device=communicator.device), [1] * communicator.world_size
    )
    (image_counts, image_widths), (text_counts, text_widths) = of_ranks.permute(1, 2, 0).tolist()
    return CandidateSizes(tuple(image_counts), max(image_widths)), CandidateSizes(tuple(text_counts), max(text_widths))


def make_plan(table: ContrastTable, *, form: str, sizes: tuple[CandidateSizes, CandidateSizes]) -> ContrastPlan:
    """The plan of one step, on the host.

    table: of this rank, on the host (`join_tables`). form: see `losses/contrastive.py`. sizes: from `share_sizes`.
    """
    scores = _sorted_scores(table)
    pair, role = scores["pair"], scores["role"]
    num_pairs, num_scores = len(table.pair_image), len(role)
    begins = np.searchsorted(_PLACE[role], np.arange(len(_ROLES) + 1)).tolist()

    def with_roles(first: SequenceRole, last: SequenceRole | None = None) -> slice:
        return slice(begins[_PLACE[first]], begins[_PLACE[last or first] + 1])

    def score_of_pairs(wanted: SequenceRole) -> Integers:
        places, rows = np.full(num_pairs, num_scores), with_roles(wanted)
        places[pair[rows]] = np.arange(rows.start, rows.stop)
        return places

    own_joint, own_single = score_of_pairs(SequenceRole.JOINT_PAIR), score_of_pairs(SequenceRole.SINGLE_IMAGE)
    negatives = with_roles(SequenceRole.JOINT_NEGATIVE, SequenceRole.SINGLE_NEGATIVE)
    is_joint, owner, level = role[negatives] == SequenceRole.JOINT_NEGATIVE, pair[negatives], scores["level"][negatives]
    accuracy = np.where(is_joint, 0, len(_LEVELS)) + level - int(_LEVELS[0])
    keys = np.stack([column.numpy() for column in (table.pair_group, table.pair_image_key, table.pair_text_key)], 1)

    def local_candidates(
        pair_rows: torch.Tensor, score_rows: Integers, own_keys: Integers, others: slice, of_ranks: CandidateSizes
    ) -> LocalCandidates:
        owners = np.concatenate((np.arange(num_pairs), pair[others]))
        items = np.concatenate((own_keys, scores["key"][others]))
        return LocalCandidates(
            rows=torch.from_numpy(np.concatenate((pair_rows.numpy(), score_rows[others]))),
            keys=torch.from_numpy(np.concatenate((keys[owners], items[:, None]), 1)),
            own=torch.from_numpy(_items_by_owner(owners, items, num_owners=num_pairs, width=of_ranks.width)),
            counts=of_ranks.counts,
        )

    other_images, other_texts = with_roles(*_OTHER_IMAGES), with_roles(*_OTHER_TEXTS)
    ends = [negatives.start, num_scores]
    if form != "one_log":
        ends = [other_texts.stop, negatives.start, with_roles(SequenceRole.JOINT_NEGATIVE).stop, num_scores]
    parts = tuple(group_on_host(owners, num_pairs) for owners in np.split(pair, ends[:-1]))
    return ContrastPlan(
        part_sizes=np.diff(ends, prepend=0).tolist(),
        score_images=group_on_host(scores["image"], int(scores["image"].max(initial=-1)) + 1),
        score_texts=group_on_host(scores["text"], int(scores["text"].max(initial=-1)) + 1),
        parts=parts,
        has_any=torch.from_numpy(np.stack([np.diff(part.starts.numpy()) > 0 for part in parts])),
        own_score=torch.from_numpy(own_single),
        counterpart=torch.from_numpy(np.where(is_joint, own_joint[owner], own_single[owner])),
        accuracy=torch.from_numpy(np.where(level == Level.NONE, len(HARD_NEGATIVES), accuracy)),
        pair_keys=functional.pad(torch.from_numpy(keys), (0, 1), value=NO_ITEM),
        images=local_candidates(table.pair_image, scores["image"], keys[:, 1], other_images, sizes[0]),
        texts=local_candidates(table.pair_text, scores["text"], keys[:, 2], other_texts, sizes[1]),
    )


def _sorted_scores(table: ContrastTable) -> dict[str, Integers]:
    """The columns `score_*` in the order of `_ROLES`, negatives by level; equal ones stay in stream order."""
    order = np.lexsort((table.score_level.numpy(), _PLACE[table.score_role.numpy()]))
    names = ("pair", "image", "text", "role", "level", "key")
    return {name: getattr(table, f"score_{name}").numpy()[order] for name in names}


def _items_by_owner(owner_N: Integers, items_N: Integers, *, num_owners: int, width: int) -> Integers:
    """[num_owners, width] the items of each owner, padded with NO_ITEM."""
    order = np.argsort(owner_N, kind="stable")
    owner_N, items_N = owner_N[order], items_N[order]
    counts = np.bincount(owner_N, minlength=num_owners)
    place = np.arange(len(owner_N)) - (np.cumsum(counts) - counts)[owner_N]
    table = np.full((num_owners, width), NO_ITEM)
    table[owner_N, place] = items_N
    return table
