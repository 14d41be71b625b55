"""Parameter groups and optimizers by the names of `OptimizerConfig`.

The optimizer object is made here and handed to DeepSpeed, so one place decides what is decayed and what Adam means.
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
"""Under which a parameter group has its factor on the scheduled rate."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW, the same bits, without what torch wraps its methods in for torch.compile.

    Those wrappers import the whole compiler to tell it to stay out: 1.3 s of a start's 3.7 s of processor time.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def parameter_groups(
    model: nn.Module, *, weight_decay: float, rate_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Matrices and embeddings are decayed; vectors and scalars (biases, layer norms, the temperature) are not.

    rate_factors: by part of the model (`factors_of`); each factor makes groups of its own, which tell it under `RATE_FACTOR`.
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
    """Take what has a factor of 0 out of training, in place.

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
        UserError: NVIDIA apex is asked for and not installed, LAMB is asked for where tensors are flattened, DeepSpeed's Adam
            cannot be compiled, or as `factors_of`.
    """
    groups = parameter_groups(model, weight_decay=config.weight_decay, rate_factors=config.rate_factors)
    common: dict[str, Any] = {"lr": config.peak_learning_rate, "betas": config.betas, "eps": config.epsilon}
    on_host = offloads_optimizer(ds_config) or device.type == "cpu"
    if config.name == "adamw":
        # The fused form reads and writes each weight once; without it each step walks over the weights about ten times.
        # Under ZeRO, DeepSpeed loads the compiler anyway, and warns of any class but torch's own.
        kind = torch.optim.AdamW if zero_stage(ds_config) else AdamW
        return kind(groups, fused=True, **common)
    if config.name == "deepspeed_adam":
        return _deepspeed_adam(groups, common, on_host=on_host)
    if on_host:
        raise UserError(f"optimizer.name={config.name!r} runs on NVIDIA GPUs without offload only; use 'adamw'")
    if config.name == "apex_lamb" and zero_stage(ds_config) > 0:
        # LAMB scales each weight tensor by its own norm; ZeRO steps flat slices of many tensors.
        raise UserError(
            f"optimizer.name='apex_lamb' needs ZeRO stage 0, not {zero_stage(ds_config)}: ZeRO flattens the tensors whose "
            f"norms LAMB needs; set engine.deepspeed_config=zero0_{precision(ds_config)} or optimizer.name=apex_adam"
        )
    apex = _nvidia_apex()
    if config.name == "apex_adam":
        adam: torch.optim.Optimizer = apex.FusedAdam(groups, adam_w_mode=True, **common)
        return adam
    # Clipping is the engine's; FusedLAMB's own (on by default) is put out of reach.
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
    """Compile and load an operator of DeepSpeed; one that is compiled already is only loaded.

    A process that was killed while it compiled leaves a lock behind, which the next ones would await for ever, without a word.
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
    except Exception as error:  # of a compiler, what asks it for its version, a library that is not there afterwards
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"optimizer.name='deepspeed_adam': DeepSpeed cannot compile its {builder.name} here ({reason}); see that a C++ "
            "compiler and ninja are installed, or use 'adamw'"
        ) from None


def _nvidia_apex() -> Any:
    """NVIDIA's `apex.optimizers`; the package of that name on the public index has no such module."""
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("apex.optimizers") is None:
        raise UserError(
            "optimizer.name=apex_* needs NVIDIA apex, built from source (https://github.com/NVIDIA/apex); "
            "'pip install apex' installs another project; or set optimizer.name=adamw"
        )
    return importlib.import_module("apex.optimizers")


def prepare_state(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor]) -> None:
    """Give every master weight the state that its first step would create, so that a checkpoint can be read into it."""
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
    """Updates taken so far: the number that Adam's bias correction uses."""
    if _counts_in_groups(optimizer):
        return int(optimizer.param_groups[0].get("step", 0))
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def set_applied_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Make Adam continue as after `steps` updates."""
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
    """Make DeepSpeed's CPU Adam correct its moments by the same bits as if it had taken these steps: its powers of beta, which no
    checkpoint holds, are products from step to step in 32 bits. An update of nothing counts a step."""
    group, nothing = optimizer.param_groups[0], torch.zeros(0)
    settings = (group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
    for step in range(steps + 1):  # step 0 begins anew
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, *settings, nothing, nothing, nothing, nothing)


def _counts_in_groups(optimizer: torch.optim.Optimizer) -> bool:
    """apex keeps one counter per group, everyone else one per weight."""
    return type(optimizer).__module__.startswith("apex.")
