"""Out of memory, reported in one sentence: how memory was used, and what to change."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import torch

from unimo_ds.utils.errors import MemoryRanOutError
from unimo_ds.utils.machine import memory_gib

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of torch's allocators, CUDA and cuBLAS."""
_GIB = 2**30
_SMALL = 0.05
"""Fraction of a GPU's memory that is too little to mention."""


@contextlib.contextmanager
def out_of_memory_told(doing: str, cure: str, *, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Work that may need more memory than `device` has.

    doing: what runs inside, e.g. "step 12". cure: what to change, e.g. "lower batch.micro_batch_tokens".

    Raises:
        MemoryRanOutError: only on this rank, memory ran out inside.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = f"rank {rank} on {socket.gethostname()} ran out of memory in {doing}"
        raise MemoryRanOutError(f"{where} ({use_of(device)}); {cure}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or Python reports it: a full GPU raises more than one class of error."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def use_of(device: torch.device | None = None) -> str:
    """How the memory of a device is used at this moment; None: of this process's GPU, or else the CPU."""
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")  # type: ignore[no-untyped-call]
    if device.type != "cuda":
        return f"{memory_gib():.1f} GiB may be used here"
    free, total = torch.cuda.mem_get_info(device)
    tensors, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    gaps, others = reserved - tensors, total - free - reserved
    parts = [
        f"{tensors / _GIB:.1f} of the {total / _GIB:.1f} GiB of {torch.cuda.get_device_name(device)} hold its tensors"
    ]
    if gaps > _SMALL * total:
        parts.append(f"{gaps / _GIB:.1f} are gaps, which PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True closes")
    if others > _SMALL * total:
        parts.append(f"{others / _GIB:.1f} are taken by CUDA and other processes (nvidia-smi)")
    return ", ".join(parts)
