"""Which rows the contrastive loss takes for what: all that a `ContrastTable` decides before any vector is there.

Made on the host. A mask over a table on a GPU would not do: how many rows it chooses is only known when all work queued before
it is done, and a host that waits for that lets the GPU run dry. Here choices become lists of rows, and devices get the lists.

Letters: P local pairs, Q scores, M scores of negatives among them, n candidates of one modality, k items of a pair.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unimo_ds.data.schema import ContrastTable, Level, SequenceRole
from unimo_ds.ops.contrastive import NO_ITEM
from unimo_ds.utils.communicator import Communicator

Lists = TypeVar("Lists", "Brought", "ContrastPlan")

_SINGLE_POSITIVES = (
    SequenceRole.SINGLE_IMAGE,
    SequenceRole.SINGLE_POSITIVE,
    SequenceRole.RELATED_TEXT,
    SequenceRole.RELATED_IMAGE,
)
_JOINT_POSITIVES = (SequenceRole.JOINT_PAIR, SequenceRole.JOINT_POSITIVE)
_PARTS = (_SINGLE_POSITIVES, _JOINT_POSITIVES, (SequenceRole.JOINT_NEGATIVE,), (SequenceRole.SINGLE_NEGATIVE,))
_PLACE = np.zeros(len(SequenceRole), np.int64)
"""By role: where its scores stand among the others."""
_PLACE[[role for part in _PARTS for role in part]] = np.arange(sum(map(len, _PARTS)))

_LEVELS = (Level.SENTENCE, Level.PHRASE, Level.WORD)
HARD_NEGATIVES = tuple(
    f"hard_negative_{form}_{level.name.lower()}" for form in ("joint", "single") for level in _LEVELS
)
"""Names of the accuracies against rewrites, by how those are encoded and were made."""


@dataclass(frozen=True)
class Brought:
    """What this rank brings of one modality: its pairs' own, then related items and the positive rewrites that stand alone."""

    rows: torch.Tensor
    """[n] int64, of the pooled vectors; the first P are the pairs' own."""
    keys: torch.Tensor
    """[n, 4] int64; see `ops.contrastive.Candidates`."""
    own: torch.Tensor
    """[P, k] int64, keys of what each pair brings, padded with NO_ITEM; k is the same on all ranks."""
    counts: tuple[int, ...] = ()
    """n of every rank."""

    def to(self, device: torch.device) -> Brought:
        return _moved(self, device)


@dataclass(frozen=True)
class ContrastPlan:
    """Lists of rows for the device, and how long they are for the host."""

    ends: tuple[int, int, int]
    """Where, among the Q scores, the single positives end, then the joint positives, then the joint negatives; the single
    negatives are the rest."""
    score_image: torch.Tensor
    """[Q] int64, row of the pooled images."""
    score_text: torch.Tensor
    """[Q] int64, row of the pooled texts."""
    score_pair: torch.Tensor
    """[Q] int64, number of the pair."""
    own_score: torch.Tensor
    """[P] int64, which score is that of the pair's single encodings; Q: none."""
    rival: torch.Tensor
    """[M] int64, which score each negative has to stay below: the pair's own, encoded as the negative is; Q: none."""
    asks: torch.Tensor
    """[M] int64, which of HARD_NEGATIVES each negative counts for; one too many: none."""
    pair_keys: torch.Tensor
    """[P, 3] int64: group, image key, text key."""
    images: Brought
    texts: Brought

    @property
    def num_pairs(self) -> int:
        return len(self.own_score)

    def to(self, device: torch.device) -> ContrastPlan:
        """The same lists on `device`; the copies do not wait for work there."""
        return _moved(self, device)


def make_plan(table: ContrastTable, *, communicator: Communicator) -> ContrastPlan:
    """The plan of one step, on the host. A collective: ranks tell each other how much they bring.

    table: on the host, of all micro-batches of this rank.
    """
    table = _sorted(table)
    role, level, pair = table.score_role.numpy(), table.score_level.numpy(), table.score_pair.numpy()
    num_pairs, num_scores = len(table.pair_image), len(role)
    single_positives, joint_positives, joint_negatives = (int(np.isin(role, part).sum()) for part in _PARTS[:3])
    first_negative = single_positives + joint_positives

    def score_of_pairs(wanted: SequenceRole) -> NDArray[np.int64]:
        places = np.full(num_pairs, num_scores)
        places[pair[role == wanted]] = np.flatnonzero(role == wanted)
        return places

    own_joint, own_single = score_of_pairs(SequenceRole.JOINT_PAIR), score_of_pairs(SequenceRole.SINGLE_IMAGE)
    role, level, pair = (column[first_negative:] for column in (role, level, pair))  # of negatives, from here on
    is_joint = role == SequenceRole.JOINT_NEGATIVE
    asks = np.where(is_joint, 0, len(_LEVELS)) + level - int(_LEVELS[0])
    pair_keys = torch.stack((table.pair_group, table.pair_image_key, table.pair_text_key), 1)
    related_texts = (SequenceRole.RELATED_TEXT, SequenceRole.SINGLE_POSITIVE)
    images, texts = _agreed(
        _brought(table, pair_keys, table.pair_image, 1, table.score_image, (SequenceRole.RELATED_IMAGE,)),
        _brought(table, pair_keys, table.pair_text, 2, table.score_text, related_texts),
        communicator,
    )
    return ContrastPlan(
        ends=(single_positives, first_negative, first_negative + joint_negatives),
        score_image=table.score_image,
        score_text=table.score_text,
        score_pair=table.score_pair,
        own_score=torch.from_numpy(own_single),
        rival=torch.from_numpy(np.where(is_joint, own_joint[pair], own_single[pair])),
        asks=torch.from_numpy(np.where(level == Level.NONE, len(HARD_NEGATIVES), asks)),
        pair_keys=pair_keys,
        images=images,
        texts=texts,
    )


def _sorted(table: ContrastTable) -> ContrastTable:
    """The scores in the order of `_PARTS`, negatives by level; equal ones stay in the order of the stream."""
    order = torch.from_numpy(np.lexsort((table.score_level.numpy(), _PLACE[table.score_role.numpy()])))
    names = [field.name for field in dataclasses.fields(table) if field.name.startswith("score_")]
    return dataclasses.replace(table, **{name: getattr(table, name)[order] for name in names})


def _brought(
    table: ContrastTable,
    pair_keys: torch.Tensor,
    pair_row: torch.Tensor,
    item_column: int,
    score_row: torch.Tensor,
    others: tuple[SequenceRole, ...],
) -> Brought:
    """item_column: of `pair_keys`, where the key of the pair's own item is. others: roles of scores whose item counts too."""
    chosen = torch.isin(table.score_role, torch.tensor([int(role) for role in others]))
    owner = torch.cat((torch.arange(len(pair_row)), table.score_pair[chosen]))
    items = torch.cat((pair_keys[:, item_column], table.score_key[chosen]))
    return Brought(
        rows=torch.cat((pair_row, score_row[chosen])),
        keys=torch.cat((pair_keys[owner], items.unsqueeze(1)), 1),
        own=_items_by_owner(owner, items, num_owners=len(pair_row)),
    )


def _items_by_owner(owner_N: torch.Tensor, items_N: torch.Tensor, *, num_owners: int) -> torch.Tensor:
    """[num_owners, k] the items of each owner, padded with NO_ITEM."""
    order = torch.argsort(owner_N, stable=True)
    owner_N, items_N = owner_N[order], items_N[order]
    counts = torch.bincount(owner_N, minlength=num_owners)
    place = torch.arange(len(owner_N)) - (counts.cumsum(0) - counts)[owner_N]
    table = items_N.new_full((num_owners, int(counts.max()) if num_owners else 1), NO_ITEM)
    table[owner_N, place] = items_N
    return table


def _agreed(images: Brought, texts: Brought, communicator: Communicator) -> tuple[Brought, ...]:
    """Both with the counts of all ranks, and tables of own items as wide as the widest rank's."""
    mine = [size for one in (images, texts) for size in (len(one.rows), one.own.shape[1])]
    of_ranks = communicator.all_gather_rows(
        torch.tensor([mine], device=communicator.device), [1] * communicator.world_size
    ).T.tolist()
    agreed = []
    for brought, counts, widths in zip((images, texts), of_ranks[::2], of_ranks[1::2], strict=True):
        own = functional.pad(brought.own, (0, max(widths) - brought.own.shape[1]), value=NO_ITEM)
        agreed.append(dataclasses.replace(brought, own=own, counts=tuple(counts)))
    return tuple(agreed)


def _moved(lists: Lists, device: torch.device) -> Lists:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(lists):
        value = getattr(lists, field.name)
        if isinstance(value, torch.Tensor):
            changes[field.name] = value.to(device, non_blocking=True)
        elif isinstance(value, Brought):
            changes[field.name] = value.to(device)
    return dataclasses.replace(lists, **changes)
