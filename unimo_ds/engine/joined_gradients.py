"""Gradients of all parameters at once, in DeepSpeed's optimizer for bf16 with fp32 accumulation (ZeRO stage 1).

It casts, adds, measures and clips them one by one: six operators for each parameter and step of two micro-batches, a thousand in
the base model, while the GPU has nothing else to do. The same bits in fewer: addition itself widens bf16, norms of a list are
taken at once, and a group's gradients are clipped as the one flat tensor that holds them. (Still one kernel for each addition:
torch 2.13 joins those of a list only if all its tensors have one dtype.) And it zeroes the bf16 gradients, to which the next
backward pass adds: without them, that pass leaves its own where they are.

It also waits for the GPU four times: for a constant, to see whether the norm is finite and whether to clip, and, after the
update, for the norm itself. Here the host reads the norm once, before the update, during which it goes on to the next step.

Written against DeepSpeed 0.19.8 (runtime/bf16_optimizer.py).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def join(wrapper: BF16_Optimizer) -> None:
    """Replace the methods of this optimizer that go through its parameters, and the function that goes through gradients."""
    wrapper.update_hp_grads = functools.partial(_accumulate, wrapper)
    wrapper.get_grads_for_norm = functools.partial(_gradients, wrapper, wrapper.get_grads_for_norm)
    wrapper.clear_lp_grads = functools.partial(_forget, wrapper)
    bf16_optimizer.get_global_norm_of_tensors = _norm


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
    if clear_lp_grads:
        _forget(wrapper)


def _forget(wrapper: BF16_Optimizer, set_to_none: bool = True) -> None:
    """Drop the bf16 gradients. set_to_none: whatever it says."""
    for parameters in wrapper.bf16_groups:
        for parameter in parameters:
            parameter.grad = None


def _gradients(wrapper: BF16_Optimizer, one_by_one: Any, for_clipping: bool = False) -> Any:
    """What DeepSpeed takes the norm of, one by one; or what it scales: padding and missing gradients are 0, and stay 0."""
    return wrapper.fp32_groups_gradients_flat if for_clipping else one_by_one(for_clipping=False)


def _norm(input_tensors: list[torch.Tensor], mpu: None, norm_type: float) -> torch.Tensor:
    """fp32 scalar on the host; -1, as in DeepSpeed, if the norm is not finite. mpu: there is no model parallelism."""
    norms = torch.stack(torch._foreach_norm(input_tensors, norm_type))
    norm = norms.pow(norm_type).sum().pow(1.0 / norm_type).cpu()
    return norm.masked_fill_(~norm.isfinite(), -1.0)
