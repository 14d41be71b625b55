"""Parameter groups and optimizers by the names of `OptimizerConfig`.

The optimizer object is made here and passed to DeepSpeed, so weight decay and the variant of Adam are decided in one place.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unimo_ds.config import OptimizerConfig
from unimo_ds.engine.checkpoint_folder import MOMENTS
from unimo_ds.engine.ds_config import offloads_optimizer, precision, zero_stage
from unimo_ds.engine.rate_factors import factors_of
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.launchers import local_rank

RATE_FACTOR = "rate_factor"
"""Key in a parameter group: its factor on the scheduled rate."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW, bit-identical, without the wrappers that torch adds to its methods for torch.compile.

    Those import the whole compiler only to disable it: 1.3 s of a start's 3.7 s of CPU time.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def parameter_groups(
    model: nn.Module, *, weight_decay: float, rate_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Matrices and embeddings have weight decay; vectors and scalars (biases, layer norms, the temperature) have none.

    rate_factors: by part of the model (`factors_of`); each factor has its own groups, which hold it under `RATE_FACTOR`.
    Order within a group is that of `named_parameters`, which ZeRO's flat buffers rely on.

    Raises:
        UserError: as `factors_of`.
    """
    parameters = dict(model.named_parameters())
    factor_of = factors_of(parameters, rate_factors or {})
    trainable = [(factor_of[name], one) for name, one in parameters.items() if one.requires_grad and factor_of[name]]
    groups = []
    for factor in sorted({factor for factor, _ in trainable}, reverse=True):
        mine = [parameter for its_factor, parameter in trainable if its_factor == factor]
        matrices, vectors = [one for one in mine if one.ndim >= 2], [one for one in mine if one.ndim < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, RATE_FACTOR: factor})
        groups.append({"params": vectors, "weight_decay": 0.0, RATE_FACTOR: factor})
    return [group for group in groups if group["params"]]


def freeze(model: nn.Module, rate_factors: Mapping[str, float]) -> None:
    """Freeze the parameters with a factor of 0, in place.

    Raises:
        UserError: as `factors_of`.
    """
    parameters = dict(model.named_parameters())
    for name, factor in factors_of(parameters, rate_factors).items():
        if not factor:
            parameters[name].requires_grad_(False)


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, ds_config: Mapping[str, Any], *, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters, to be wrapped by DeepSpeed.

    Raises:
        UserError: NVIDIA apex is needed but not installed or cannot run here, LAMB with ZeRO, DeepSpeed's Adam cannot be
            compiled, or as `factors_of`.
    """
    groups = parameter_groups(model, weight_decay=config.weight_decay, rate_factors=config.rate_factors)
    common: dict[str, Any] = {"lr": config.peak_learning_rate, "betas": config.betas, "eps": config.epsilon}
    on_host = offloads_optimizer(ds_config) or device.type == "cpu"
    if config.name == "adamw":
        # Fused: reads and writes each weight once; the unfused form makes about ten passes over the weights per step.
        # With ZeRO, DeepSpeed loads the compiler anyway, and warns about any class but torch's own.
        kind = torch.optim.AdamW if zero_stage(ds_config) else AdamW
        return kind(groups, fused=True, **common)
    if config.name == "deepspeed_adam":
        return _deepspeed_adam(groups, common, on_host=on_host)
    if on_host:
        raise UserError(f"optimizer.name={config.name!r} runs on NVIDIA GPUs without offload only; use 'adamw'")
    if config.name == "apex_lamb" and zero_stage(ds_config) > 0:
        # LAMB scales each weight tensor by its own norm; ZeRO updates flat slices of many tensors.
        raise UserError(
            f"optimizer.name='apex_lamb' needs ZeRO stage 0, not {zero_stage(ds_config)}: ZeRO flattens the tensors whose "
            f"norms LAMB needs; set engine.deepspeed_config=zero0_{precision(ds_config)} or optimizer.name=apex_adam"
        )
    apex = _nvidia_apex()
    if config.name == "apex_adam":
        adam: torch.optim.Optimizer = apex.FusedAdam(groups, adam_w_mode=True, **common)
        return adam
    # The engine clips; this limit disables FusedLAMB's own clipping, which is on by default.
    lamb: torch.optim.Optimizer = apex.FusedLAMB(groups, max_grad_norm=1e30, **common)
    return lamb


def _deepspeed_adam(groups: list[dict[str, Any]], common: dict[str, Any], *, on_host: bool) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    _compile(CPUAdamBuilder() if on_host else FusedAdamBuilder())
    if on_host:
        host: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **common)
        return host
    fused: torch.optim.Optimizer = FusedAdam(groups, adam_w_mode=True, **common)
    return fused


def _compile(builder: Any) -> None:
    """Load an operator of DeepSpeed, compiling it if needed.

    A process that was killed while compiling leaves a lock behind, for which later ones would wait forever, silently.
    """
    from torch.utils import cpp_extension

    lock = Path(cpp_extension._get_build_directory(builder.name, verbose=False)) / "lock"
    if lock.exists() and local_rank(os.environ) == 0:
        print(
            f"waiting while another process compiles DeepSpeed's {builder.name}; if there is none, one was killed at it: "
            f"remove {lock}",
            flush=True,
        )
    try:
        builder.load(verbose=False)
    except Exception as error:  # from the compiler, the check of its version, or loading the library
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"optimizer.name='deepspeed_adam': DeepSpeed cannot compile its {builder.name} here ({reason}); see that a C++ "
            "compiler and ninja are installed, or use 'adamw'"
        ) from None


def _nvidia_apex() -> Any:
    """NVIDIA's `apex.optimizers`; the unrelated package `apex` on PyPI has no such module."""
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("apex.optimizers") is None:
        raise UserError(
            "optimizer.name=apex_* needs NVIDIA apex, built from source (https://github.com/NVIDIA/apex); "
            "'pip install apex' installs another project; or set optimizer.name=adamw"
        )
    return importlib.import_module("apex.optimizers")


def prepare_state(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor]) -> None:
    """Create the optimizer state of every master weight as its first step would, so that a checkpoint can be read into it."""
    is_torch = isinstance(optimizer, torch.optim.AdamW)
    for weight in weights:
        state = optimizer.state[weight]
        if not state:
            if is_torch:
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            elif not _counts_in_groups(optimizer):
                state["step"] = 0
            for name in MOMENTS:
                state[name] = torch.zeros_like(weight.data, memory_format=torch.preserve_format)


def applied_steps(optimizer: torch.optim.Optimizer) -> int:
    """Updates applied so far, as Adam's bias correction counts them."""
    if _counts_in_groups(optimizer):
        return int(optimizer.param_groups[0].get("step", 0))
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def set_applied_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Set the step count so that Adam continues as after `steps` updates."""
    if _counts_in_groups(optimizer):
        for group in optimizer.param_groups:
            group["step"] = steps
        return
    for state in optimizer.state.values():
        if isinstance(state["step"], torch.Tensor):
            state["step"].fill_(steps)
        else:
            state["step"] = steps
    if hasattr(optimizer, "ds_opt_adam"):
        _count_again(optimizer, steps)


def _count_again(optimizer: Any, steps: int) -> None:
    """Restore the bias correction of DeepSpeed's CPU Adam bit for bit: its powers of beta are not in checkpoints but multiplied
    up in fp32, step by step. An update of an empty tensor counts as a step."""
    group, nothing = optimizer.param_groups[0], torch.zeros(0)
    settings = (group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
    for step in range(steps + 1):  # step 0 resets the powers
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, *settings, nothing, nothing, nothing, nothing)


def _counts_in_groups(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step counter is per group (apex) rather than per weight (all others)."""
    return type(optimizer).__module__.startswith("apex.")
