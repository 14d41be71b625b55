"""Calls of the kernels' C functions: arguments as a structure of addresses, the device's library, torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from unimo_ds.ops.native import library


class Arguments(ctypes.Structure):
    """Arguments of a C function: numbers and addresses of tensors. It does not keep the tensors alive."""

    def __init__(self, **values: torch.Tensor | float | None) -> None:
        super().__init__()
        self.set(**values)

    def set(self, **values: torch.Tensor | float | None) -> None:
        """Fill fields; None is a null pointer."""
        for name, value in values.items():
            setattr(self, name, value.data_ptr() if isinstance(value, torch.Tensor) else value)


def addresses(names: str) -> list[tuple[str, type]]:
    """Pointer fields of a structure."""
    return [(name, ctypes.c_void_p) for name in names.split()]


def integers(names: str) -> list[tuple[str, type]]:
    """C integer fields of a structure."""
    return [(name, ctypes.c_int) for name in names.split()]


def bound(name: str, like: torch.Tensor, format_number: int | None = None) -> Callable[[ctypes.Structure], None]:
    """A C function on a tensor's device and torch's current stream there, as a function of its argument structure. The device
    must be the current one, as it is within operators made by `define`.

    format_number: replaces that of the tensor's dtype.
    """
    function = getattr(library.library_of(like.device), name)
    stream = library.current_stream(like.device)
    number = library.FORMATS[like.dtype] if format_number is None else format_number

    def call(arguments: ctypes.Structure) -> None:
        library.require_done(function(ctypes.byref(arguments), number, stream), name)

    return call


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous and aligned for 16-byte reads: parameters may be views of a flat buffer (ZeRO) at any element."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def define(
    operators: torch.library.Library, schema: str, function: Callable[..., Any], shapes: Callable[..., Any]
) -> None:
    """Register an operator for CUDA and, with emulated kernels, the CPU, with its shapes for tracing."""
    name = schema.split("(")[0]

    def on_its_device(*arguments: Any) -> Any:
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            return function(*arguments)

    operators.define(schema)  # type: ignore[no-untyped-call]
    for device in ("CUDA", "CPU"):
        operators.impl(name, on_its_device, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"unimo::{name}", shapes, lib=operators)


def differentiate(
    operators: torch.library.Library, name: str, derivative: Callable[..., Any], save: Callable[..., None]
) -> None:
    """Give an operator its derivative, as `torch.library.register_autograd` does at twice the host time per call.

    derivative: (ctx, *gradients of the results) -> gradients of the arguments. save: (ctx, arguments, results).
    """
    operator = getattr(torch.ops.unimo, name).default

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                results = operator(*arguments)
            save(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return derivative(ctx, *gradients)

    operators.impl(name, Differentiable.apply, "Autograd")  # type: ignore[no-untyped-call]
