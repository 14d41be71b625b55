"""Backward passes that have no derivative of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_MESSAGE = b"the second derivative of this operator is not implemented: it can be differentiated only once"


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a `torch.autograd.Function`'s `backward`: whoever differentiates its results gets an error.

    Otherwise torch would differentiate what is made of its own operators and take the rest for constants: a wrong second
    derivative without a word. (So does torch's own `once_differentiable` if the incoming gradients are constants, as for a sum.)
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        if not torch.is_grad_enabled():  # it is with `create_graph` alone
            return backward(ctx, *gradients)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        results = found if isinstance(found, tuple) else (found,)
        inputs = [None if one is None else one.detach().requires_grad_() for one in results]
        return torch._C._functions.DelayedError(_MESSAGE, len(inputs))(*inputs)  # type: ignore[arg-type]

    return wrapped
