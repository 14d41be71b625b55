"""Calls of the kernels' C functions: arguments as a structure of addresses, the device's library, torch's current stream."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch

from unimo_ds.ops.native import library
from unimo_ds.utils import seed
from unimo_ds.utils.differentiable_once import differentiable_once

_NUMBERS = frozenset((int, float, bool, type(None)))


class Arguments(ctypes.Structure):
    """Arguments of a C function: numbers and addresses of tensors. It does not keep the tensors alive: give it none that its
    caller does not hold until the launch, or torch may give their memory to another."""

    def __init__(self, **values: torch.Tensor | float | None) -> None:
        super().__init__()
        self.set(**values)

    def set(self, **values: torch.Tensor | float | None) -> None:
        """Fill fields; None is a null pointer."""
        for name, value in values.items():
            setattr(self, name, value if type(value) in _NUMBERS else value.data_ptr())  # type: ignore[union-attr]


def addresses(names: str) -> list[tuple[str, type]]:
    """Pointer fields of a structure."""
    return [(name, ctypes.c_void_p) for name in names.split()]


def integers(names: str) -> list[tuple[str, type]]:
    """C integer fields of a structure."""
    return [(name, ctypes.c_int) for name in names.split()]


@functools.cache
def dropout_fields(probability: float, site: int) -> dict[str, float]:
    """What kernels with dropout get of its rate and number; see `utils/seed.py`."""
    return {
        "dropout_threshold": seed.keep_threshold(probability),
        "site_key": ((site + 1) * 0x9E3779B9) & 0xFFFFFFFF,
        "keep_scale": seed.keep_scale(probability),
    }


def bound(name: str, like: torch.Tensor, format_number: int | None = None) -> Callable[[ctypes.Structure], None]:
    """A C function on a tensor's device and torch's current stream there, as a function of its argument structure. The device
    must be the current one, as it is within an `Operator`.

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


class Operator:
    """A torch operator of the kernels.

    Python calls of it do not pass torch's dispatcher, which takes as long as the rest of the host's work, unless someone there
    is to see it: a compiler that traces shapes, a dispatch mode that counts or records.
    """

    def __init__(
        self,
        operators: torch.library.Library,
        schema: str,
        function: Callable[..., Any],
        shapes: Callable[..., Any],
        *,
        derivative: Callable[..., Any] | None = None,
        save: Callable[..., None] | None = None,
        is_linear: bool = False,
    ) -> None:
        """Register the operator for CUDA and, with emulated kernels, the CPU.

        function: launches the kernels. shapes: of its results, for tracing. derivative: (ctx, *gradients of the results) ->
        gradients of the arguments, as `torch.library.register_autograd` takes it at several times the host time per call.
        save: (ctx, arguments, results). is_linear: the derivative is a differentiable operator itself; all others have none.
        """
        name = schema.split("(")[0]
        self._function = function
        operators.define(schema)  # type: ignore[no-untyped-call]
        self._registered = getattr(torch.ops.unimo, name).default
        for device in ("CUDA", "CPU"):
            operators.impl(name, self._on_its_device, device)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"unimo::{name}", shapes, lib=operators)
        self._differentiable = None
        if derivative is not None and save is not None:
            backward = derivative if is_linear else differentiable_once(derivative)
            self._differentiable = self._make_differentiable(name, backward, save)
            operators.impl(name, self._differentiable, "Autograd")  # type: ignore[no-untyped-call]

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _is_watched(arguments[0]):
            return self._registered(*arguments)
        if self._differentiable is not None and torch.is_grad_enabled():
            return self._differentiable(*arguments)
        return self._on_its_device(*arguments)

    def _on_its_device(self, *arguments: Any) -> Any:
        index = arguments[0].device.index
        if index is None or index == torch.cuda.current_device():
            return self._function(*arguments)
        with torch.cuda.device(index):
            return self._function(*arguments)

    def _make_differentiable(
        self, name: str, derive: Callable[..., Any], save: Callable[..., None]
    ) -> Callable[..., Any]:
        registered, run = self._registered, self._on_its_device

        class Differentiable(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> Any:
                with torch._C._AutoDispatchBelowAutograd():
                    results = (registered if _is_watched(arguments[0]) else run)(*arguments)
                save(ctx, arguments, results)
                return results

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                return derive(ctx, *gradients)

        Differentiable.__name__ = name  # as profiles show it
        return Differentiable.apply


def _is_watched(tensor: torch.Tensor) -> bool:
    """Whether a call must pass torch's dispatcher: for modes and subclasses, shapes alone, `torch.func` and `torch.jit.trace`."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or type(tensor) not in _PLAIN
        or tensor.is_meta
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
