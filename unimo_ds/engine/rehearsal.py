"""The part of a micro-batch that a rehearsal encodes: only sequences whose pooled vectors the contrastive loss needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
    here = {
        field.name: value.numpy()
        for field in dataclasses.fields(batch)
        if field.name not in _ROWS and isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    at = {name: here[name] for name in ("token_at", "region_at", "pooled_image_at", "pooled_text_at")}
    is_kept_S = np.zeros(batch.num_sequences, bool)
    is_kept_S[here["position_sequence"][np.concatenate((at["pooled_image_at"], at["pooled_text_at"]))]] = True
    all_lengths_S = np.diff(here["sequence_starts"])
    is_kept_T = np.repeat(is_kept_S, all_lengths_S)
    kept_S, kept_T = np.flatnonzero(is_kept_S), np.flatnonzero(is_kept_T)
    token, region = (np.flatnonzero(is_kept_T.take(at[name])) for name in ("token_at", "region_at"))
    sequence_S, position_T = is_kept_S.cumsum() - 1, is_kept_T.cumsum() - 1
    lengths = all_lengths_S.take(kept_S)
    rows = here["region_row"].take(region)
    is_shown_N = np.zeros(len(batch.region_boxes), bool)
    is_shown_N[rows] = True
    is_kept_M = is_shown_N.take(here["image_starts"][:-1])  # every use of an image includes its first row, [IMG]
    all_lengths_M = np.diff(here["image_starts"])
    is_kept_N = np.repeat(is_kept_M, all_lengths_M)
    lengths_M = all_lengths_M[is_kept_M]
    owners = here["prefix_of"].take(kept_S)  # an image encoded without text, also clean
    kept = {
        "sequence_starts": _starts(lengths),
        "prefix_lengths": here["prefix_lengths"].take(kept_S),
        "sequence_seeds": here["sequence_seeds"].take(kept_S),
        "prefix_of": np.where(owners >= 0, sequence_S[owners], -1).astype(np.int32),
        "position_sequence": np.repeat(np.arange(len(kept_S), dtype=np.int32), lengths),
        "position_offset": here["position_offset"].take(kept_T),
        "position_keys": here["position_keys"].take(kept_T),
        "token_ids": here["token_ids"].take(token),
        "token_at": position_T.take(at["token_at"].take(token)),
        "token_positions": here["token_positions"].take(token),
        "image_starts": _starts(lengths_M),
        "region_row": (is_kept_N.cumsum() - 1).take(rows),
        "rows": np.flatnonzero(is_kept_N),
        "region_at": position_T.take(at["region_at"].take(region)),
        "pooled_image_at": position_T.take(at["pooled_image_at"]),
        "pooled_text_at": position_T.take(at["pooled_text_at"]),
    }
    device = on_device.token_ids.device
    tensors = moved(tuple(map(_tensor, kept.values())), device)
    changes: dict[str, Any] = dict(zip(kept, tensors, strict=True))
    changes |= {name: getattr(on_device, name)[:0] for name in _TARGETS}
    kept_rows = changes.pop("rows")
    changes |= {name: getattr(on_device, name).index_select(0, kept_rows) for name in _ROWS}
    return dataclasses.replace(
        on_device,
        **changes,
        longest=int(lengths.max(initial=0)),
        longest_image=int(lengths_M.max(initial=0)),
    )


def _starts(lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """[n + 1] int32 offsets."""
    starts = np.zeros(len(lengths) + 1, np.int32)
    lengths.cumsum(out=starts[1:])
    return starts


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """numpy gives an empty array a stride of 0, with which torch cannot view 64 bits as twice 32."""
    tensor = torch.from_numpy(array)
    return tensor if len(array) else tensor.new_empty(0)
