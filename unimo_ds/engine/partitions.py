"""Access to the fp32 master weights and Adam's moments in each of DeepSpeed's wrappers, by parameter.

DeepSpeed wraps the optimizer in a different class for each ZeRO stage and precision, and each stores the masters
differently: in the parameters themselves, in per-tensor copies, in slices of flat buffers, or in partitions of partitioned
parameters. A `Masters` hides which. Reading gives full fp32 tensors on every rank; it is a collective. Written against
DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py, bf16_optimizer.py, fp16/*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

from unimo_ds.engine.checkpoint_folder import WEIGHT
from unimo_ds.engine.optim import prepare_state


class Masters(Protocol):
    """fp32 weights and moments by parameter. Methods that a kind does not need do nothing."""

    def read(self, parameter: Any, slot: str) -> torch.Tensor:
        """The full fp32 tensor, in the parameter's shape. A collective: every rank makes the same calls in the same order."""

    def write(self, parameter: Any, slot: str, value: torch.Tensor) -> None:
        """Store this rank's part of `value` (the full fp32 tensor, on the host). Local."""

    def publish(self) -> None:
        """Call after all writes: updates the weights that the forward pass uses. A collective."""
        return None

    def poison(self) -> None:
        """Make the accumulated gradients non-finite, so that DeepSpeed itself drops them and skips the update."""

    def forget(self) -> None:
        """Call after a skipped update: drops gradients that DeepSpeed has kept."""
        return None


class PlainMasters(Masters):
    """Stage 0 in fp32: the parameters are the masters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        prepare_state(optimizer, [weight for group in optimizer.param_groups for weight in group["params"]])

    def _tensor(self, parameter: Any, slot: str) -> torch.Tensor:
        tensor: torch.Tensor = parameter.data if slot == WEIGHT else self.optimizer.state[parameter][slot]
        return tensor

    def read(self, parameter: Any, slot: str) -> torch.Tensor:
        return self._tensor(parameter, slot).detach()

    def write(self, parameter: Any, slot: str, value: torch.Tensor) -> None:
        self._tensor(parameter, slot).copy_(value)

    def poison(self) -> None:
        _poison_first_gradient([weight for group in self.optimizer.param_groups for weight in group["params"]])


class CopiedMasters(Masters):
    """Stage 0 in fp16 or bf16: fp32 copies, one per tensor (unfused) or joined into one flat tensor per group (fused)."""

    def __init__(self, wrapper: FP16_UnfusedOptimizer | FP16_Optimizer) -> None:
        self.wrapper = wrapper
        self.masters: dict[Any, tuple[torch.Tensor, int]] = {}
        is_flat = isinstance(wrapper, FP16_Optimizer)
        for index, group in enumerate(wrapper.fp16_groups):
            start = 0
            for position, parameter in enumerate(group):
                master = wrapper.fp32_groups_flat[index] if is_flat else wrapper.fp32_groups[index][position]
                self.masters[parameter] = (master, start if is_flat else 0)
                start += parameter.numel()
        # The unfused wrapper has already taken a step with zero gradients, which counts and decays weights.
        wrapper.optimizer.state.clear()
        prepare_state(wrapper.optimizer, [w for group in wrapper.optimizer.param_groups for w in group["params"]])

    def _tensor(self, parameter: Any, slot: str) -> torch.Tensor:
        master, start = self.masters[parameter]
        whole = master.data if slot == WEIGHT else self.wrapper.optimizer.state[master][slot]
        view: torch.Tensor = whole.view(-1).narrow(0, start, parameter.numel()).view(parameter.shape)
        return view

    def read(self, parameter: Any, slot: str) -> torch.Tensor:
        return self._tensor(parameter, slot)

    def write(self, parameter: Any, slot: str, value: torch.Tensor) -> None:
        self._tensor(parameter, slot).copy_(value)

    def publish(self) -> None:
        for parameter in self.masters:
            parameter.data.copy_(self._tensor(parameter, WEIGHT))

    def poison(self) -> None:
        _poison_first_gradient(list(self.masters))


class SlicedMasters(Masters):
    """ZeRO stages 1 and 2 (and stage 1 in bf16 with fp32 accumulation): each rank owns a slice of each flat group."""

    def __init__(self, wrapper: DeepSpeedZeroOptimizer | BF16_Optimizer) -> None:
        self.wrapper = wrapper
        is_bf16 = isinstance(wrapper, BF16_Optimizer)
        slices = wrapper.fp32_groups_flat_partition if is_bf16 else wrapper.single_partition_of_fp32_groups
        prepare_state(wrapper.optimizer, list(slices))
        wrapper._lazy_init_hp_params_optimizer_state()

    def read(self, parameter: Any, slot: str) -> torch.Tensor:
        whole: torch.Tensor = parameter.get_full_hp_param(None if slot == WEIGHT else slot)
        return whole

    def write(self, parameter: Any, slot: str, value: torch.Tensor) -> None:
        parameter.set_full_hp_param(value, None if slot == WEIGHT else slot)

    def publish(self) -> None:
        self.wrapper.update_lp_params()

    def forget(self) -> None:
        if not isinstance(self.wrapper, BF16_Optimizer):
            # With offload and fp32 accumulation, 0.19.8 keeps the skipped sum, so a NaN in it would stay forever.
            for index in self.wrapper.averaged_gradients:
                self.wrapper.averaged_gradients[index] = None

    def poison(self) -> None:
        if isinstance(self.wrapper, BF16_Optimizer):
            for flat, flags in zip(
                self.wrapper.fp32_groups_gradients_flat, self.wrapper.fp32_groups_has_gradients, strict=True
            ):
                flat.fill_(float("nan"))
                flags[:] = [True] * len(flags)
        elif self.wrapper.cpu_offload:
            self.wrapper.local_overflow = True
            self.wrapper.check_grad_overflow = True
        else:
            for gradients in self.wrapper.averaged_gradients.values():
                for gradient in gradients or ():
                    gradient.fill_(float("nan"))


class PartitionedMasters(Masters):
    """ZeRO stage 3: every parameter is split into equal parts, the last one padded."""

    def __init__(self, wrapper: DeepSpeedZeroOptimizer_Stage3) -> None:
        self.wrapper = wrapper
        prepare_state(wrapper.optimizer, list(wrapper.fp32_partitioned_groups_flat))

    def read(self, parameter: Any, slot: str) -> torch.Tensor:
        whole: torch.Tensor = self.wrapper.get_full_hp_param(parameter, None if slot == WEIGHT else slot)
        return whole

    def write(self, parameter: Any, slot: str, value: torch.Tensor) -> None:
        part = own_part(parameter, value)
        if slot == WEIGHT:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, slot)

    def publish(self) -> None:
        # As at the end of the wrapper's own step: copy masters to the forward's precision, then gather persistent parameters.
        self.wrapper._partition_all_parameters()
        for index in range(len(self.wrapper.fp16_groups)):
            self.wrapper._reassign_or_swap_out_partitioned_parameters(index)
        if self.wrapper.persistent_parameters:
            self.wrapper.persistent_parameters[0].all_gather(self.wrapper.persistent_parameters)

    def poison(self) -> None:
        # Poison one element that the next step overwrites: the padding of a partition would stay poisoned. The first rank's
        # first element is never padding, and norms are summed over ranks.
        first = self.wrapper.fp16_groups[0][0]
        if self.wrapper._get_param_partition_rank(first) == 0:
            self.wrapper.grad_partitions_flat_buffer[:1].fill_(float("nan"))
            for norms in filter(None, [getattr(self.wrapper, "norm_for_param_grads", None)]):
                norms.update({key: torch.full_like(norm, float("nan")) for key, norm in norms.items()})


def own_part(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """This rank's part of `value`, the full parameter, at ZeRO stage 3: fp32, one-dimensional, zero-padded."""
    size = parameter.ds_tensor.numel()
    start = size * parameter.ds_zero_partition_rank
    part = torch.zeros(size, dtype=torch.float32)
    owned = value.reshape(-1)[start : start + size]
    part[: owned.numel()] = owned
    return part


def make_masters(wrapper: Any) -> Masters:
    """The `Masters` of a DeepSpeed engine's optimizer."""
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        return PartitionedMasters(wrapper)
    if isinstance(wrapper, DeepSpeedZeroOptimizer | BF16_Optimizer):
        return SlicedMasters(wrapper)
    if isinstance(wrapper, FP16_UnfusedOptimizer | FP16_Optimizer):
        return CopiedMasters(wrapper)
    if isinstance(wrapper, torch.optim.Optimizer):
        return PlainMasters(wrapper)
    raise TypeError(f"no known way to the masters of {type(wrapper).__name__}")


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scaler_state(wrapper: Any) -> dict[str, float]:
    """State of the dynamic loss scaler; empty if there is none."""
    scaler = _scaler(wrapper)
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if getattr(scaler, name, None) is not None}


def set_scaler_state(wrapper: Any, state: Mapping[str, float]) -> None:
    """Restore a dynamic loss scaler; a run that changed precision keeps the fresh one."""
    scaler = _scaler(wrapper)
    for name, value in state.items():
        if getattr(scaler, name, None) is not None:
            setattr(scaler, name, value)


def _scaler(wrapper: Any) -> Any:
    for name in ("loss_scaler", "loss_scale_config"):
        scaler = getattr(wrapper, name, None)
        if getattr(scaler, "last_overflow_iter", None) is not None:  # None if the scale is fixed
            return scaler
    return None


def _poison_first_gradient(parameters: list[Any]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.fill_(float("nan"))
            return
