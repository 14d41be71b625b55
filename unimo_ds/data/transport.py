"""A step's batch as one block of bytes, to send it from a loader process to the trainer.

A packed batch holds some thirty tensors. Sent one by one, each needs a shared-memory file that stays open while the batch
lives, and a few prefetched steps of several micro-batches exhaust a process's file descriptors. So a whole step is sent in one
tensor, which can also be pinned at once for the copy to a GPU; the batch received consists of views of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.schema import ContrastTable, PackedBatch, StepBatch
from unimo_ds.utils.errors import UserError

_ALIGNMENT = 64
_TABLE_FIELDS = tuple(field.name for field in dataclasses.fields(ContrastTable))
_HOST_FIELDS = ("longest", "longest_image", "shares_prefixes", "keys")
_TENSOR_FIELDS = tuple(
    field.name for field in dataclasses.fields(PackedBatch) if field.name not in ("contrast", *_HOST_FIELDS)
)


@dataclass(frozen=True)
class FlatStep:
    """A `StepBatch` whose tensors are in one block."""

    block: torch.Tensor
    """[bytes] uint8"""
    places: tuple[tuple[str, tuple[int, ...], int], ...]
    """dtype name, shape and offset of each tensor, micro-batch by micro-batch."""
    host_fields: tuple[tuple[Any, ...], ...]
    """`_HOST_FIELDS` of each micro-batch."""
    rest: StepBatch
    """The batch without micro-batches."""

    def pin_memory(self) -> FlatStep:
        """The same in page-locked memory. (torch's DataLoader calls it if pinning is on.)"""
        return dataclasses.replace(self, block=self.block.pin_memory())


def flatten(batch: StepBatch) -> FlatStep:
    """All tensors of a CPU batch, copied into one block.

    Raises:
        UserError: /dev/shm is full.
    """
    arrays = [array for micro_batch in batch.micro_batches for array in _arrays(micro_batch)]
    places, size = [], 0
    for array in arrays:
        places.append((array.dtype.name, array.shape, size))
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    # In shared memory from the start, like torch's own collation: otherwise sending would copy everything there, which doubles
    # the time (690 us instead of 330 per image of 410 KB).
    try:
        storage = torch.UntypedStorage._new_shared(max(size, 1))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UserError(
            f"a step of {size / 2**20:.0f} MiB finds no room in /dev/shm ({error}); give it more (docker run --shm-size=8g), or "
            "set data.prefetch_steps=1 or data.num_workers=0"
        ) from None
    block = torch.empty(0, dtype=torch.uint8).set_(storage)
    flat = block.numpy()
    for array, (_, _, offset) in zip(arrays, places, strict=True):
        flat[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
    return FlatStep(
        block=block,
        places=tuple(places),
        host_fields=tuple(tuple(getattr(one, name) for name in _HOST_FIELDS) for one in batch.micro_batches),
        rest=dataclasses.replace(batch, micro_batches=()),
    )


def restore(flat: FlatStep) -> StepBatch:
    """The batch of `flatten`; its tensors are views of the block."""
    views = _views(flat)
    micro_batches = []
    for host_fields in flat.host_fields:
        fields: dict[str, Any] = {name: next(views) for name in _TENSOR_FIELDS}
        fields["contrast"] = ContrastTable(**{name: next(views) for name in _TABLE_FIELDS})
        fields.update(zip(_HOST_FIELDS, host_fields, strict=True))
        micro_batches.append(PackedBatch(**fields))
    return dataclasses.replace(flat.rest, micro_batches=tuple(micro_batches))


def _arrays(batch: PackedBatch) -> list[NDArray[Any]]:
    tensors = [getattr(batch, name) for name in _TENSOR_FIELDS]
    tensors += [getattr(batch.contrast, name) for name in _TABLE_FIELDS]
    return [tensor.numpy() for tensor in tensors]


def _views(flat: FlatStep) -> Iterator[torch.Tensor]:
    for name, shape, offset in flat.places:
        dtype: torch.dtype = getattr(torch, name)
        size = math.prod(shape) * dtype.itemsize
        yield flat.block[offset : offset + size].view(dtype).view(shape)
