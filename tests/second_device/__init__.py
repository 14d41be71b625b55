"""A second torch device for tests on machines without GPUs: it computes as the CPU does and refuses what a GPU refuses.

Its tensors meet the host's only in copies, as numbers and as indices; numpy cannot read them; and whoever copies them to the
host has to wait. It tells why the host has waited (`waits`), and whoever changes host memory that a copy may still read fails at
the next wait. What a GPU has by itself is missing: streams, a memory and a generator. Its kernels are emulated ones (`kernels`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from unimo_ds.ops.native import build, library

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


@contextlib.contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Yields a list that holds, at the end, why the host waited for the device inside, once for each time."""
    reasons: list[str] = []
    if device.type == "second":
        torch.ops.second_device.take_waits()
        yield reasons
        reasons += torch.ops.second_device.take_waits()
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield reasons
        finally:
            torch.cuda.set_sync_debug_mode("default")
    reasons += [text for one in caught if "synchronizing CUDA operation" in (text := str(one.message))]


def kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of `kernels/` on the device: on the second one emulated, since its memory is the host's."""
    if device.type != "second":
        return
    monkeypatch.setenv(library.ON_HOST, "sm_80")
    refusal, library_of = library.refusal, library.library_of
    monkeypatch.setattr(library, "refusal", lambda like: refusal(torch.empty(0, dtype=like.dtype)))
    monkeypatch.setattr(library, "library_of", lambda _: library_of(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device.index)


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
