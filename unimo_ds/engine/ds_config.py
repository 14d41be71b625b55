"""DeepSpeed's configuration: engine settings from a strict JSON file, the rest from the recipe.

DeepSpeed ignores a misspelt top-level key, reads a nested "auto" as the default and has changed its defaults between
releases (clipping went from off to 1.0 in 0.19.3). So every key is allow-listed with its type at every level, "auto" is
refused, and every number that matters is set explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError, nearest_name

FOLDER = Path(__file__).resolve().parents[1] / "ds_configs"

_NUMBER = (int, float)
_OFFLOAD: dict[str, Any] = {"device": str, "pin_memory": bool}
_ALLOWED: dict[str, Any] = {
    "zero_optimization": {
        "stage": int,
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "reduce_bucket_size": _NUMBER,
        "allgather_partitions": bool,
        "allgather_bucket_size": _NUMBER,
        "overlap_comm": bool,
        "sub_group_size": _NUMBER,
        "round_robin_gradients": bool,
        "zero_hpz_partition_size": int,
        "stage3_prefetch_bucket_size": _NUMBER,
        "stage3_param_persistence_threshold": _NUMBER,
        "stage3_model_persistence_threshold": _NUMBER,
        "stage3_max_live_parameters": _NUMBER,
        "stage3_max_reuse_distance": _NUMBER,
        "offload_optimizer": _OFFLOAD,
        "offload_param": _OFFLOAD,
    },
    "fp16": {
        "enabled": bool,
        "loss_scale": _NUMBER,
        "initial_scale_power": int,
        "loss_scale_window": int,
        "hysteresis": int,
        "consecutive_hysteresis": bool,
        "min_loss_scale": int,
    },
    "bf16": {"enabled": bool},
    "data_types": {"grad_accum_dtype": str},
    "communication_data_type": str,
    "prescale_gradients": bool,
    "gradient_predivide_factor": _NUMBER,
    "zero_force_ds_cpu_optimizer": bool,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
}
_ELSEWHERE = {
    "train_batch_size": "batch.global_samples",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_tokens",
    "gradient_accumulation_steps": "batch.micro_batch_tokens",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer.name",
    "scheduler": "schedule.warmup_steps",
    "steps_per_print": "logging.every_steps",
    "activation_checkpointing": "engine.activation_checkpointing",
    "tensorboard": "logging.every_steps",
    "wandb": "logging.trackers",
}
"""DeepSpeed keys that the recipe sets instead, and the recipe's name for each."""


def load(name_or_path: str, config: RunConfig, world_size: int) -> dict[str, Any]:
    """The complete dictionary for `deepspeed.initialize`.

    Args:
        name_or_path: name of a file in `ds_configs/` (without .json), or a path to one.
        config: used for clipping; `engine.optim` makes the optimizer object.
        world_size: number of processes.

    Raises:
        UserError: no such file, not JSON, an unknown, ill-typed, "auto" or recipe-owned key, or conflicting settings.
    """
    path = _find(name_or_path)
    values = strict_json.read(path, dict[str, Any], cure="mend it")
    _check(values, _ALLOWED, str(path))
    _check_sense(values, str(path))
    return {
        **values,
        # DeepSpeed's "micro-batch" is one stream here, and the number of streams varies from step to step: the engine sets the
        # accumulation boundary itself, so both numbers stay 1 and DeepSpeed's own scaling is off.
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": float(config.optimizer.clip_norm),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        # DeepSpeed would wait for the GPU before every forward pass and after every step, to time them: nothing could be queued
        # ahead. The trainer measures speed itself (`engine/speed.py`).
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }


def zero_stage(ds_config: Mapping[str, Any]) -> int:
    """0 to 3."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def precision(ds_config: Mapping[str, Any]) -> str:
    """fp32, bf16 or fp16: dtype of the weights in the forward pass. Master weights are always fp32."""
    for name in ("fp16", "bf16"):
        if ds_config.get(name, {}).get("enabled"):
            return name
    return "fp32"


def offloads_optimizer(ds_config: Mapping[str, Any]) -> bool:
    """Whether optimizer states are in host memory."""
    section = ds_config.get("zero_optimization", {}).get("offload_optimizer", {})
    return bool(section.get("device", "none") != "none")


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".json"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"engine.deepspeed_config={name_or_path!r}: no such file")
        return path
    path = FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        known = [item.stem for item in FOLDER.glob("*.json")]
        raise UserError(
            f"engine.deepspeed_config={name_or_path!r} is not in {FOLDER}{nearest_name(name_or_path, known)}"
        )
    return path


def _check(values: Mapping[str, Any], allowed: Mapping[str, Any], where: str) -> None:
    for key, value in values.items():
        if key not in allowed:
            if key in _ELSEWHERE and allowed is _ALLOWED:
                raise UserError(f"{where}: {key!r} belongs to the recipe; set {_ELSEWHERE[key]} there")
            raise UserError(f"{where}: unknown key {key!r}{nearest_name(key, allowed)}")
        if value == "auto":
            raise UserError(f"{where}: {key!r} is 'auto', which DeepSpeed reads as its default; write the value")
        expected = allowed[key]
        if isinstance(expected, dict):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key!r} must be an object, not {value!r}")
            _check(value, expected, f"{where}: {key}")
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            kinds = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
            raise UserError(f"{where}: {key!r} must be {kinds}, not {value!r}")


def _check_sense(values: Mapping[str, Any], where: str) -> None:
    stage = zero_stage(values)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{where}: zero_optimization.stage must be 0, 1, 2 or 3, not {stage}")
    if values.get("fp16", {}).get("enabled") and values.get("bf16", {}).get("enabled"):
        raise UserError(f"{where}: fp16 and bf16 are both enabled; keep one")
    if offloads_optimizer(values) and stage == 0:
        raise UserError(f"{where}: offload_optimizer needs zero_optimization.stage of 1 or more")
    section = values.get("zero_optimization", {})
    for part in ("offload_optimizer", "offload_param"):
        if section.get(part, {}).get("device", "none") not in ("none", "cpu"):
            raise UserError(f"{where}: {part}.device must be 'none' or 'cpu': checkpoints cannot be read off NVMe")
    accumulation = values.get("data_types", {}).get("grad_accum_dtype")
    if accumulation not in (None, "fp32", "bf16", "fp16"):
        raise UserError(f"{where}: data_types.grad_accum_dtype must be fp32, bf16 or fp16, not {accumulation!r}")
    if stage == 0 and accumulation not in (None, precision(values)):
        raise UserError(
            f"{where}: data_types.grad_accum_dtype={accumulation!r} needs zero_optimization.stage of 1 or more; "
            "DeepSpeed accumulates in the weights' precision at stage 0"
        )
