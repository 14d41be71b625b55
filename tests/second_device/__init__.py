"""A second torch device for tests on machines without GPUs: it computes as the CPU does and refuses what a GPU refuses.

Its tensors meet the host's only in copies, as numbers and as indices; numpy cannot read them; and whoever copies them to the
host has to wait. What a GPU has by itself is missing: kernels, streams, a memory and a generator.
"""

from __future__ import annotations

import functools
import hashlib
import os
import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from unimo_ds.ops.native import build

_SOURCE = Path(__file__).with_name("device.cpp")
_NAME = "second"


@functools.cache
def second_device() -> torch.device:
    """The device; compiled once for each source and torch (ten seconds)."""
    torch.ops.load_library(_library())
    torch.utils.rename_privateuse1_backend(_NAME)
    module = types.ModuleType(_NAME)
    module.is_available = lambda: False  # nothing is to take it that does not name it
    module.get_amp_supported_dtype = list  # asked by activation checkpointing
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None  # it draws from the CPU's generator
    torch._register_device_module(_NAME, module)
    return torch.device(_NAME, 0)


def _library() -> Path:
    version = hashlib.sha256(_SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = build.libraries_folder() / f"second_device-{version}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        aside = library.with_suffix(f".{os.getpid()}.so")
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", *(f"-I{folder}" for folder in include_paths())]
        libraries = [*(f"-L{folder}" for folder in library_paths()), "-ltorch_cpu", "-lc10"]
        build.compile_file([os.environ.get("CXX", "g++"), *flags, str(_SOURCE), *libraries, "-o", str(aside)])
        aside.replace(library)
    return library
