"""Forward passes that compute in the precision of what they are given, under autocast too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def own_precision(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a `torch.autograd.Function`'s `forward`, whose first argument is a tensor: turns autocast off inside.

    Its backward pass runs without autocast, and must compute as it did.
    """

    @functools.wraps(forward)
    def wrapped(ctx: Any, first: torch.Tensor, *rest: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return forward(ctx, first, *rest)
        with torch.autocast(first.device.type, enabled=False):
            return forward(ctx, first, *rest)

    return wrapped
