"""The engine: a thin class around DeepSpeed with only what this project needs.

Differences from plain DeepSpeed use, and why:
- The number of micro-batches varies from step to step, so the caller sets the accumulation boundary and DeepSpeed's
  own scaling by accumulation is off. Gradients are averaged over ranks; the caller scales losses for that.
- Models may return a dataclass. DeepSpeed finds tensors only in tuples and dictionaries, and silently does not prepare
  the backward pass of other outputs, so outputs pass through it as a dictionary.
- fp16 without ZeRO: DeepSpeed 0.19.8 divides gradients by the loss scale but never multiplies the loss by it; done here.
- A forward pass without gradients may come between another one and its backward pass, at ZeRO stage 3 too (`pending.py`).
- In bf16 at ZeRO stage 1 gradients are added up without a cast before, and measured and clipped together (`joined_gradients.py`).
- All ranks together skip a step with a non-finite loss or gradient, at every stage and precision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.engine import joined_gradients, optim
from unimo_ds.engine.checkpoint_folder import WEIGHT
from unimo_ds.engine.ds_config import offloads_optimizer, precision, zero_stage
from unimo_ds.engine.frozen import WithFrozen, frozen_weights
from unimo_ds.engine.kernels import agree_on_kernels, kernels_missing
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.partitions import make_masters, scaler_state, set_scaler_state
from unimo_ds.engine.pending import pending_gradients_kept
from unimo_ds.engine.protocol import StepResult
from unimo_ds.engine.stragglers import Stopwatch
from unimo_ds.utils.agreement import failing_together
from unimo_ds.utils.communicator import make_communicator
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import keep_freed_buffers
from unimo_ds.utils.out_of_memory import out_of_memory_told


class Engine:
    """Forward, backward and update of one model over all ranks. Every rank calls the same methods in the same order."""

    def __init__(self, model: nn.Module, config: RunConfig, ds_config: dict[str, Any], *, device: torch.device) -> None:
        self.device = device
        self.ds_config = ds_config
        self.module = model
        self.communicator = make_communicator(device)
        self.forward_time = Stopwatch(device)
        self._outputs = _Outputs(model)
        with failing_together(self.communicator):
            optim.freeze(model, config.optimizer.rate_factors)
            optimizer = optim.make_optimizer(model.to(device), config.optimizer, ds_config, device=device)
        is_low = precision(ds_config) != "fp32"
        initial = _host_copies(model) if is_low else {}
        frozen = frozen_weights(model, is_kept_elsewhere=is_low or zero_stage(ds_config) == 3)
        with contextlib.redirect_stdout(io.StringIO()):  # its memory reports ignore the log level
            self._deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
        self._outputs.finish()
        self._optimizer = optimizer
        self.wrapper = self._deepspeed.optimizer
        self.masters = make_masters(self.wrapper)
        if isinstance(self.wrapper, BF16_Optimizer):
            joined_gradients.join(self.wrapper)
        if frozen:
            self.masters = WithFrozen(self.masters, frozen)
        if initial:
            # DeepSpeed makes its masters from already rounded weights; replace them with the exact ones.
            for name, parameter in model.named_parameters():
                self.masters.write(parameter, WEIGHT, initial[name])
            self.masters.publish()
        self._scales_itself = isinstance(self.wrapper, FP16_Optimizer | FP16_UnfusedOptimizer)
        scaler: Any = getattr(self.wrapper, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            # DeepSpeed would raise a bare exception before the trainer stops with a reason (engine.max_skipped_steps).
            scaler.raise_error_at_min_scale = False
        if zero_stage(ds_config) == 3:
            for module, parameter in getattr(model, "external_parameters", list)():
                deepspeed.zero.register_external_parameter(module, parameter)

    @property
    def zero_stage(self) -> int:
        return zero_stage(self.ds_config)

    @property
    def loss_scale(self) -> float:
        """Factor on the loss in fp16; 1 in other precisions."""
        if precision(self.ds_config) != "fp16":
            return 1.0
        return float(self.wrapper.loss_scale if not self._scales_itself else self.wrapper.loss_scale_config.cur_scale)

    @property
    def loss_scale_floor(self) -> float:
        """The lowest loss scale that overflows can lead to: a fixed scale, or the minimum of a dynamic one."""
        settings = self.ds_config.get("fp16", {})
        return float(settings.get("loss_scale") or settings.get("min_loss_scale", 1.0))

    @property
    def applied_steps(self) -> int:
        """Updates applied so far, without skipped steps."""
        return optim.applied_steps(self._optimizer)

    def set_applied_steps(self, steps: int) -> None:
        """Make the optimizer continue as after `steps` updates (when a checkpoint is loaded)."""
        optim.set_applied_steps(self._optimizer, steps)

    def forward(self, *arguments: Any) -> Any:
        """The model's output for `arguments`, prepared for `backward` if gradients are enabled.

        With ZeRO-3 every forward is a collective, with or without gradients.
        """
        self._outputs.keep_plain = True
        is_between = self.zero_stage == 3 and not torch.is_grad_enabled()
        try:
            with self.forward_time, pending_gradients_kept(self.module) if is_between else contextlib.nullcontext():
                output = self._deepspeed(*arguments)
        finally:
            self._outputs.keep_plain = False
        return self._outputs.restore(output)

    def backward(self, loss: torch.Tensor, *, is_boundary: bool) -> None:
        """Add the gradients of `loss` (scalar fp32, scaled so that averaging over ranks gives the right result).

        is_boundary: True on the last micro-batch of the step.
        """
        self._deepspeed.set_gradient_accumulation_boundary(is_boundary)
        if self._scales_itself:
            loss = loss.float() * self.loss_scale
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, *, is_finite: bool = True, is_wanted: bool = True) -> StepResult:
        """Clip and update after the boundary's backward, or drop the gradients on all ranks.

        is_finite, is_wanted: False drops this step's gradients; must be equal on all ranks (derive them from summed losses).
        An unwanted step, unlike a non-finite one, does not change the loss scale.
        """
        scaler = scaler_state(self.wrapper)
        result = self._step(is_dropped=not (is_finite and is_wanted))
        if is_finite and not is_wanted:
            set_scaler_state(self.wrapper, scaler)
        return result

    def _step(self, *, is_dropped: bool) -> StepResult:
        scale = self.loss_scale
        if is_dropped:
            self.masters.poison()
        if self.wrapper is self._optimizer:
            return self._plain_step(scale)
        self._deepspeed.step()
        norm = self._deepspeed.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        applied = bool(self._deepspeed.was_step_applied())
        if not applied:
            self.masters.forget()
        if isinstance(self.wrapper, FP16_UnfusedOptimizer):
            norm /= scale
        return StepResult(applied=applied, gradient_norm=norm, loss_scale=scale)

    def _plain_step(self, scale: float) -> StepResult:
        """fp32 without ZeRO: DeepSpeed neither reports the norm nor skips non-finite steps."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self._deepspeed.zero_grad()
            return StepResult(applied=False, gradient_norm=norm, loss_scale=scale)
        self._deepspeed.step()
        return StepResult(applied=True, gradient_norm=norm, loss_scale=scale)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of the next update, before each part's factor (`optimizer.rate_factors`)."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group[optim.RATE_FACTOR]

    def close(self) -> None:
        """Release DeepSpeed's buffers and hooks."""
        self._deepspeed.destroy()


def make_engine(model: nn.Module, config: RunConfig, ds_config: dict[str, Any]) -> Engine:
    """Wrap `model` (fp32 weights, equal on all ranks or broadcast from rank 0) for training.

    Args:
        model: returns a tensor, or a tuple, dictionary or dataclass of tensors; may have `external_parameters()`, the
            parameters used outside their module, which are registered with ZeRO-3.
        config: optimizer and engine settings.
        ds_config: from `ds_config.load`.

    Raises:
        ValueError: a parameter without dimensions.
        UserError: the device cannot run the given precision, the optimizer cannot run here, DeepSpeed refuses a value, or only
            some ranks have the CUDA kernels.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            # DeepSpeed 0.19.8 broadcasts parameters as bytes; tensors without dimensions cannot be viewed as such.
            raise ValueError(f"parameter {name!r} has no dimension; give it the shape [1]")
    device = start_processes()
    if device.type == "cpu":
        keep_freed_buffers()
    if threads := config.engine.threads or _usual_threads(device, ds_config):
        torch.set_num_threads(threads)
    communicator = make_communicator(device)
    with failing_together(communicator):
        _check_precision(precision(ds_config), device)
        _check_values(ds_config, config.engine.deepspeed_config)
    if device.type == "cuda":
        agree_on_kernels(kernels_missing(device, precision(ds_config)), communicator)
    cure = how_to_save_memory(config, ds_config)
    with out_of_memory_told("making the engine", cure, device=device, rank=communicator.rank):
        return Engine(model, config, ds_config, device=device)


def how_to_save_memory(config: RunConfig, ds_config: dict[str, Any]) -> str:
    """Settings that a run may change to continue with less memory, as a message."""
    ways = [f"lower batch.micro_batch_tokens={config.batch.micro_batch_tokens}"]
    if not config.engine.activation_checkpointing:
        ways.append("set engine.activation_checkpointing=true")
    if zero_stage(ds_config) < 3:
        ways.append("take a higher ZeRO stage or offload (engine.deepspeed_config)")
    return f"{', or '.join(ways)}: `unimo plan` says what each needs, and the same run goes on with it"


def _usual_threads(device: torch.device, ds_config: dict[str, Any]) -> int:
    """torch threads where nothing is set; 0: as torch has them.

    Beside a GPU the host only sorts lists of some thousand numbers. torch would divide them among all cores and wait for the
    last, on cores that loader processes need: with sixteen threads, a step of 0.16 s took 0.46.
    """
    return int(device.type == "cuda" and not offloads_optimizer(ds_config))


def _check_precision(name: str, device: torch.device) -> None:
    if device.type == "cuda" and name == "bf16" and torch.cuda.get_device_capability(device)[0] < 8:
        # torch reports bf16 as supported on a V100 because it can be emulated, many times slower than fp16.
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has no bf16 units; set engine.deepspeed_config to one of the *_fp16 files"
        )
    if device.type == "cpu" and name == "fp16":
        # DeepSpeed requires AVX512-FP16, but torch's own half kernels run anywhere. For tests of the fp16 path.
        accelerator = get_accelerator()
        type(accelerator).is_fp16_supported = lambda self: True


def _check_values(ds_config: dict[str, Any], name: str) -> None:
    try:
        DeepSpeedConfig(ds_config)
    except ValueError as error:
        reason = " ".join(str(error).partition("For further information")[0].split())
        raise UserError(f"engine.deepspeed_config={name!r}: DeepSpeed says: {reason}") from None


def _host_copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().float().cpu().clone() for name, parameter in model.named_parameters()}


class _Outputs:
    """Passes a dataclass through DeepSpeed's hooks as a dictionary.

    The first forward hook (before DeepSpeed's) converts the dataclass; the last converts it back, except inside
    `Engine.forward`, where DeepSpeed still needs the tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kind: type[Any] | None = None
        self.keep_plain = False
        self._model = model
        model.register_forward_hook(self._take_apart)

    def finish(self) -> None:
        """Call after DeepSpeed has added its hooks."""
        self._model.register_forward_hook(self._put_together)

    def restore(self, output: Any) -> Any:
        if self.kind is not None and isinstance(output, dict):
            return self.kind(**output)
        return output

    def _take_apart(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not dataclasses.is_dataclass(output) or isinstance(output, type):
            return None
        self.kind = type(output)
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}

    def _put_together(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        return None if self.keep_plain else self.restore(output)
