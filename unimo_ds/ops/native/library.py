"""The built kernels in this process: which library serves a tensor, or why none does."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from unimo_ds.ops.native import build, toolchain
from unimo_ds.utils.errors import UserError

ON_HOST = "UNIMO_KERNELS_ON_HOST"
"""Environment variable: `sm_70`, `sm_80` or `sm_90` runs CPU tensors through that architecture's kernels, emulated. For tests."""
SWITCH = "UNIMO_KERNELS"
"""Environment variable: `off` disables the kernels on GPUs, whatever is built."""
FORMATS = {torch.float16: 0, torch.bfloat16: 1}
_FUNCTIONS = (
    "unimo_attention_forward",
    "unimo_attention_backward",
    "unimo_bias_gelu_forward",
    "unimo_bias_gelu_backward",
    "unimo_cross_entropy_losses",
    "unimo_cross_entropy_slopes",
    "unimo_dropout",
    "unimo_dropout_norm_forward",
    "unimo_dropout_norm_backward",
    "unimo_contrastive_conflicts",
    "unimo_contrastive_statistics",
    "unimo_contrastive_weights",
    "unimo_contrastive_pair_scores",
    "unimo_contrastive_pair_gradients",
    "unimo_contrastive_segments",
    "unimo_contrastive_segment_gradients",
)
"""Each takes (arguments, format number, stream) and returns a status."""
Answer = TypeVar("Answer")


def _constant(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Makes torch.compile call this function once while tracing, without tensors: `torch.compiler.assume_constant_result` does
    so too, but imports the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def refusal(tensor: torch.Tensor) -> str | None:
    """Why no library can take this tensor, None if one can. A missing library is compiled, once."""
    return _refusal(tensor.device, tensor.dtype)


@_constant
def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu":
        host = os.environ.get(ON_HOST)
        if host is None:
            return "it runs on NVIDIA GPUs"
        number = toolchain.architecture_number(host)
    elif device.type == "cuda":
        number = _capability(device)
        if number < 70:
            return f"it needs compute capability 7.0, this GPU has {number // 10}.{number % 10}"
    else:
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    if dtype not in FORMATS:
        return f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if dtype == torch.bfloat16 and number < 80:
        return "bfloat16 needs compute capability 8.0; use float16 on a V100"
    if device.type == "cpu":
        return None
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH}=off"
    return None if _built_for(number) else _refusal_to_build(number)


@_constant
def number_of(name: str, device: torch.device) -> int:
    """Result of a C function without arguments, in the library that serves a device's tensors."""
    return int(getattr(library_of(device), name)())


@functools.cache
def _refusal_to_build(number: int) -> str | None:
    """Builds, or returns why that failed; tried once per process."""
    try:
        build.build(f"sm_{number}")
    except (UserError, OSError) as error:
        return f"the kernels could not be built: {error}"
    _built_for.cache_clear()
    return None


def library_of(device: torch.device) -> ctypes.CDLL:
    """The library that serves tensors of a device.

    Raises:
        UserError: none is built.
    """
    if device.type == "cpu":
        return load(_host_library(os.environ.get(ON_HOST, "sm_80")))
    return _library_of_gpu(device)


@functools.cache
def _library_of_gpu(device: torch.device) -> ctypes.CDLL:
    number = _capability(device)
    path = _built_for(number)
    if path is None:
        raise UserError(f"no kernels are built for sm_{number}: run `unimo kernels build --arch sm_{number}`")
    return load(path)


@functools.cache
def _capability(device: torch.device) -> int:
    """10 * major + minor; called a hundred times a step."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def _host_library(architecture: str) -> Path:
    return build.build_host(architecture)


@functools.cache
def _built_for(number: int) -> Path | None:
    """The library for a compute capability: machine code runs on later minor versions of its major."""
    ending = f"-{build.sources_hash()}.so"
    numbers = [
        int(matched.group(1))
        for path in build.libraries_folder().glob(f"sm_*{ending}")
        if (matched := re.fullmatch(r"sm_(\d+)", path.name.removesuffix(ending)))
    ]
    fitting = [built for built in numbers if built // 10 == number // 10 and built <= number]
    return build.library_path(f"sm_{max(fitting)}") if fitting else None


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """The library at `path`, with the types of its functions. Errors as `build.require_own`."""
    build.require_own(path)
    library = ctypes.CDLL(str(path))
    for name in _FUNCTIONS:
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        function.restype = ctypes.c_int
    return library


def current_stream(device: torch.device) -> int | None:
    """Handle of torch's current stream, None on the host. device: of a tensor, so it has an index."""
    # Without the object around it that `torch.cuda.current_stream` makes.
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else None


def require_done(status: int, what: str) -> None:
    """Raise if a launch failed. Positive numbers are CUDA errors."""
    if status:
        raise RuntimeError(f"{what}: the kernel returned {status} (negative: bad arguments; positive: cudaError_t)")
