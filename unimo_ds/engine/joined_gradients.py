"""Gradients of all parameters at once, in DeepSpeed's optimizer for bf16 with fp32 accumulation (ZeRO stage 1).

It casts, adds and clips them one by one: five operators for each parameter and step of two micro-batches, 850 in the base
model, while the GPU has nothing else to do. The same bits in fewer: addition itself widens bf16, and a group's gradients are
clipped as the one flat tensor that holds them. (Still one kernel for each addition: torch 2.13 joins those of a list only if all
its tensors have one dtype.) Written against DeepSpeed 0.19.8 (runtime/bf16_optimizer.py).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def join(wrapper: BF16_Optimizer) -> None:
    """Replace the two methods of this optimizer that go through its parameters."""
    wrapper.update_hp_grads = functools.partial(_accumulate, wrapper)
    wrapper.get_grads_for_norm = functools.partial(_gradients, wrapper, wrapper.get_grads_for_norm)


@torch.no_grad()
def _accumulate(wrapper: BF16_Optimizer, clear_lp_grads: bool = False) -> None:
    """Add the parameters' bf16 gradients to the fp32 ones."""
    sums, addends = [], []
    groups = zip(wrapper.bf16_groups, wrapper.fp32_groups_gradients, wrapper.fp32_groups_has_gradients, strict=True)
    for parameters, gradients, has_gradient in groups:
        for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if parameter.grad is not None:
                parameter._hp_grad, has_gradient[index] = gradient, True
                sums.append(gradient)
                addends.append(parameter.grad.view(gradient.shape))
    if sums:
        torch._foreach_add_(sums, addends)
    if clear_lp_grads and addends:
        torch._foreach_zero_(addends)


def _gradients(wrapper: BF16_Optimizer, one_by_one: Any, for_clipping: bool = False) -> Any:
    """What DeepSpeed takes the norm of, one by one; or what it scales: padding and missing gradients are 0, and stay 0."""
    return wrapper.fp32_groups_gradients_flat if for_clipping else one_by_one(for_clipping=False)
