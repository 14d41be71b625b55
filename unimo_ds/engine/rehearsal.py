"""The part of a micro-batch that a rehearsal encodes: only sequences whose pooled vectors the contrastive loss needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from unimo_ds.data.schema import PackedBatch
from unimo_ds.utils.moving import moved

_TARGETS = (
    "language_at",
    "language_targets",
    "language_objectives",
    "masked_region_at",
    "masked_region_features",
    "masked_region_class_ids",
    "masked_region_class_probabilities",
)
_ROWS = ("region_features", "region_boxes", "region_tags")


def clean_part(batch: PackedBatch, on_device: PackedBatch) -> PackedBatch:
    """The clean sequences of `batch` on the device, without corrupted ones and targets. on_device: the same batch there.

    The pooled vectors are those of the full batch, in its order and with its dropout masks. Images used only by corrupted
    sequences are removed on the device, so that features are not copied again. Tokens have no tags in pre-training.
    """
    is_kept_S = torch.zeros(batch.num_sequences, dtype=torch.bool)
    is_kept_S[batch.position_sequence[torch.cat((batch.pooled_image_at, batch.pooled_text_at))].long()] = True
    is_kept_T = is_kept_S[batch.position_sequence.long()]
    sequence_S, position_T = is_kept_S.cumsum(0) - 1, is_kept_T.cumsum(0) - 1
    is_kept_token, is_kept_region = is_kept_T[batch.token_at], is_kept_T[batch.region_at]
    lengths = batch.sequence_starts.diff()[is_kept_S]
    rows = batch.region_row[is_kept_region]
    is_shown_N = torch.zeros(len(batch.region_boxes), dtype=torch.bool)
    is_shown_N[rows] = True
    is_kept_M = is_shown_N[batch.image_starts[:-1].long()]  # every use of an image includes its first row, [IMG]
    image_lengths_M = batch.image_starts.diff()
    is_kept_N = is_kept_M.repeat_interleave(image_lengths_M)
    owners = batch.prefix_of[is_kept_S].long()  # an image encoded without text, also clean
    kept = {
        "sequence_starts": _starts(lengths),
        "prefix_lengths": batch.prefix_lengths[is_kept_S],
        "sequence_seeds": batch.sequence_seeds[is_kept_S],
        "prefix_of": torch.where(owners >= 0, sequence_S[owners], -1).int(),
        "position_sequence": sequence_S[batch.position_sequence[is_kept_T].long()].int(),
        "position_offset": batch.position_offset[is_kept_T],
        "position_keys": batch.position_keys[is_kept_T],
        "token_ids": batch.token_ids[is_kept_token],
        "token_at": position_T[batch.token_at[is_kept_token]],
        "token_positions": batch.token_positions[is_kept_token],
        "image_starts": _starts(image_lengths_M[is_kept_M]),
        "region_row": (is_kept_N.cumsum(0) - 1)[rows],
        "rows": is_kept_N.nonzero()[:, 0],
        "region_at": position_T[batch.region_at[is_kept_region]],
        "pooled_image_at": position_T[batch.pooled_image_at],
        "pooled_text_at": position_T[batch.pooled_text_at],
    }
    device = on_device.token_ids.device
    changes: dict[str, Any] = dict(zip(kept, moved(tuple(kept.values()), device), strict=True))
    changes |= {name: getattr(on_device, name)[:0] for name in _TARGETS}
    kept_rows = changes.pop("rows")
    changes |= {name: getattr(on_device, name).index_select(0, kept_rows) for name in _ROWS}
    return dataclasses.replace(
        on_device,
        **changes,
        longest=max(lengths.tolist(), default=0),
        longest_image=max(image_lengths_M[is_kept_M].tolist(), default=0),
    )


def _starts(lengths: torch.Tensor) -> torch.Tensor:
    """[n + 1] int32 offsets."""
    return torch.cat((lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)))
