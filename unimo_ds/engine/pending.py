"""Lets ZeRO-3 free parameters in a backward pass although a forward pass without gradients came before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def pending_gradients_kept(model: nn.Module) -> Iterator[None]:
    """Around a forward pass without gradients: the backward pass of an earlier one may come after it.

    DeepSpeed 0.19.8 (runtime/zero/parameter_offload.py) counts for each module the inputs that still wait for a gradient, and
    frees the module's parameters in the backward pass when none does. But every forward pass counts anew from 0. Without the
    old counts that backward pass would gather the whole model.
    """
    counts = {module: vars(module)[_COUNT] for module in model.modules() if _COUNT in vars(module)}
    yield
    for module, count in counts.items():
        setattr(module, _COUNT, count)


_COUNT = "ds_grads_remaining"
