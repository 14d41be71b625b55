"""A second torch device for tests on machines without GPUs: it computes as the CPU does and refuses what a GPU refuses.

Its tensors do not meet the CPU's in any operator but copies, indexing and numbers, and numpy cannot read them. What a GPU does by
itself is missing: kernels, streams, a memory and a generator of its own.
"""

from __future__ import annotations

import functools
import hashlib
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

_SOURCE = Path(__file__).with_name("device.cpp")
_NAME = "second"


@functools.cache
def second_device() -> torch.device:
    """The device; compiled once for a source and a torch, in `TORCH_EXTENSIONS_DIR` (ten seconds)."""
    version = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    cpp_extension.load(
        f"unimo_second_device_{version}", [str(_SOURCE)], extra_cflags=["-O1", "-g0"], is_python_module=False
    )
    torch.utils.rename_privateuse1_backend(_NAME)
    module = types.ModuleType(_NAME)
    module.is_available = lambda: False  # nothing but these tests is to take it
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None  # it draws from the CPU's generator
    torch._register_device_module(_NAME, module)
    return torch.device(_NAME, 0)
