"""Tensors from the host to a GPU in few copies: each copy costs the host about ten microseconds, whatever its size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

_ALIGNMENT = 64
_SMALL = 1 << 22
"""Bytes up to which a tensor is first copied to page-locked memory. The driver would copy it as well, but for more than some ten
kilobytes wait for the GPU's queued work."""

Value = TypeVar("Value")


def moved(value: Value, device: torch.device) -> Value:
    """A dataclass or tuple with every tensor in it, at any depth, on `device`; copies to a GPU do not wait for work there.

    Tensors that share one storage (a step's batch as its loader sends it) are moved by one copy. Otherwise, small ones are
    first put into one block of page-locked memory.
    """
    tensors: list[torch.Tensor] = []

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    replaced(value, noted)
    there = iter(_together_on(tensors, device))
    return replaced(value, lambda _: next(there))


def replaced(value: Value, function: Callable[[torch.Tensor], torch.Tensor]) -> Value:
    """A dataclass or tuple with every tensor in it, at any depth, replaced by `function` of it."""
    if isinstance(value, torch.Tensor):
        return function(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        parts = [replaced(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes: dict[str, Any] = {
            field.name: replaced(getattr(value, field.name), function) for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changes)
    return value


def in_one_block(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """[bytes] uint8 that holds the tensors, and the offset of each: part of the storage they share, or a new block."""
    if _are_one_block(tensors):
        places = [int(tensor.storage_offset()) * tensor.element_size() for tensor in tensors]
        begin = min(places) // _ALIGNMENT * _ALIGNMENT
        end = max(place + tensor.nbytes for place, tensor in zip(places, tensors, strict=True))
        storage = torch.empty(0, dtype=torch.uint8).set_(tensors[0].untyped_storage())
        return storage[begin:end], [place - begin for place in places]
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    block = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    for place, tensor in zip(views(block, offsets, tensors), tensors, strict=True):
        place.copy_(tensor)
    return block, offsets


def views(block: torch.Tensor, offsets: Sequence[int], like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that `in_one_block` put there, with the dtypes and shapes of `like`."""
    return [
        block[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for offset, tensor in zip(offsets, like, strict=True)
    ]


def _are_one_block(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all share one storage and each is contiguous."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return len(storages) == 1 and all(tensor.is_contiguous() for tensor in tensors)


def _together_on(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    if device.type == "cpu" or not tensors or tensors[0].device.type != "cpu":
        return [tensor.to(device) for tensor in tensors]  # to the host it waits: who reads there needs what was copied
    are_one_block = _are_one_block(tensors)
    are_together = [are_one_block or tensor.nbytes <= _SMALL for tensor in tensors]
    together = list(itertools.compress(tensors, are_together))
    there: Iterator[torch.Tensor] = iter(())
    if together:
        block, offsets = in_one_block(together)
        there = iter(views(block.to(device, non_blocking=True), offsets, together))
    return [
        next(there) if is_together else tensor.to(device, non_blocking=True)
        for tensor, is_together in zip(tensors, are_together, strict=True)
    ]
