"""Calls of the kernels' C functions: arguments as a structure of addresses, the device's library, torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from unimo_ds.ops.native import library


def bound(name: str, like: torch.Tensor, format_number: int | None = None) -> Callable[[ctypes.Structure], None]:
    """A C function on a tensor's device and torch's stream there, as a function of its argument structure.

    format_number: instead of that of the tensor's dtype.
    """
    function = getattr(library.library_of(like.device), name)
    stream = library.current_stream(like.device)
    number = library.FORMATS[like.dtype] if format_number is None else format_number

    def call(arguments: ctypes.Structure) -> None:
        with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
            status = function(ctypes.byref(arguments), number, stream)
        library.require_done(status, name)

    return call


def define(
    operators: torch.library.Library, schema: str, function: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    """Register an operator for CUDA and, on emulated kernels, the CPU, with its shapes for tracing."""
    name = schema.split("(")[0]
    operators.define(schema)  # type: ignore[no-untyped-call]
    for device in ("CUDA", "CPU"):
        operators.impl(name, function, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"unimo::{name}", shapes, lib=operators)
