"""`unimo plan`: what a run will need, before any GPU is booked, from its recipe and, if given, the index of its data.

Each estimate states its assumptions. Parameters are exact, and so are operations for the sequences counted, except that
predicted tokens and masked regions follow from their shares; memory is the sum of weights, gradients, moments and kept
activations; time is operations / (peak * a stated utilisation).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from unimo_ds import recipes
from unimo_ds.config import ModelConfig, RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.models.accounting import count_parameters, forward_flops, training_flops
from unimo_ds.planning.cost import SampleCost, assumed_cost, counted_cost
from unimo_ds.planning.memory import StageMemory, frozen_parameters, has_contrast, sent_bytes, stage_memory
from unimo_ds.planning.mix import Stream, mix_of
from unimo_ds.planning.rates import (
    DEVICES_PER_NODE,
    HARDWARE,
    NODE_BYTES_PER_SECOND,
    Hardware,
    communication_seconds,
    measured_utilisation,
)
from unimo_ds.utils.errors import UserError, nearest_name

GLOBAL_BATCHES = (1024, 6144)
"""Besides the recipe's own: the paper does not publish its batch; these bracket the likely range."""
UTILISATION = 0.55
_STAGES = (0, 1, 2, 3)
_PAPER = ModelConfig()
# Assumed if no data is given.
_PATCH_SIZE, _NUM_PATCHES = 3 * 16**2, 14**2


@dataclass(frozen=True)
class BatchPlan:
    """A run at one global batch."""

    global_samples: int
    positions_per_step: int
    micro_batches: int
    """Per rank and step."""
    flops_per_step: float
    seconds_per_step: float
    steps: int
    days: float
    device_hours: float
    read_bytes_per_second: float
    """All ranks together."""
    communication_seconds: float
    """Per step, to be added to `seconds_per_step` if none of it overlaps with computation."""


@dataclass(frozen=True)
class Plan:
    recipe: str
    devices: int
    hardware: str
    utilisation: float
    encoder_parameters: int
    total_parameters: int
    frozen_parameters: int
    memory: tuple[StageMemory, ...]
    batches: tuple[BatchPlan, ...]
    mix: tuple[Stream, ...]
    """Empty if no data is given."""
    assumptions: tuple[str, ...]


def plan(
    config: RunConfig,
    *,
    corpus: Corpus | None = None,
    devices: int | None = None,
    hardware: str | None = None,
    utilisation: float = UTILISATION,
    measured: str | None = None,
) -> Plan:
    """What a run of `config` needs.

    corpus: sequences are counted as the run will draw them; None: lengths are assumed and stated.
    devices, hardware: None: those that the recipe is meant for. measured: file of rows from which the utilisation is taken.

    Raises:
        UserError: unknown hardware, no devices, a utilisation outside of (0, 1], or a rate factor of no part of the model.
    """
    default_devices, default_hardware = recipes.RUNS_ON.get(config.recipe, (1, "h200"))
    devices, hardware = default_devices if devices is None else devices, hardware or default_hardware
    if hardware not in HARDWARE:
        raise UserError(f"unknown hardware {hardware!r}{nearest_name(hardware, HARDWARE)}")
    if measured is not None:
        utilisation, how = measured_utilisation(measured, hardware)
    if devices < 1 or not 0 < utilisation <= 1:
        raise UserError(f"--devices {devices} must be at least 1 and --utilisation {utilisation} within (0, 1]")
    config, assumptions = _with_sizes(config)
    if corpus is None:
        cost, assumed = assumed_cost(config)
    else:
        cost, assumed = counted_cost(config, corpus)
    batches = {config.batch.global_samples, *(GLOBAL_BATCHES if hardware != "cpu" else ())}
    parameters, frozen = count_parameters(config.model), frozen_parameters(config)
    return Plan(
        recipe=config.recipe,
        devices=devices,
        hardware=HARDWARE[hardware].name,
        utilisation=utilisation,
        encoder_parameters=parameters.encoder,
        total_parameters=parameters.total,
        frozen_parameters=frozen,
        memory=tuple(
            stage_memory(config, cost, stage=stage, devices=devices, hardware=HARDWARE[hardware], frozen=frozen)
            for stage in _STAGES
        ),
        batches=tuple(
            _batch_plan(config, cost, parameters.total - frozen, samples, devices, HARDWARE[hardware], utilisation)
            for samples in sorted(batches)
        ),
        mix=mix_of(config, corpus) if corpus is not None else (),
        assumptions=(
            *assumptions,
            *assumed,
            *((f"utilisation {how}: {measured}",) if measured else ()),
            f"{utilisation:.3g} of {HARDWARE[hardware].peak_flops / 1e12:g} TFLOP/s a device, communication hidden (its own "
            f"column: {DEVICES_PER_NODE} devices a node, {NODE_BYTES_PER_SECOND / 1e9:g} GB/s between nodes)",
            *(("frozen parts cost as many operations and activations as trained ones",) if frozen else ()),
            *(("operators as fast as without engine.deterministic",) if config.engine.deterministic else ()),
            "attention probabilities kept for the backward pass (the paths in plain PyTorch keep them, fused ones do not)",
        ),
    )


def _with_sizes(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The config with the paper's sizes where the recipe leaves them to the data, and the assumptions made."""
    is_patched = config.model.num_image_layers > 0
    model = dataclasses.replace(
        config.model,
        vocabulary_size=config.model.vocabulary_size or _PAPER.vocabulary_size,
        region_feature_size=config.model.region_feature_size
        or (_PATCH_SIZE if is_patched else _PAPER.region_feature_size),
        num_region_classes=config.model.num_region_classes or (1 if is_patched else _PAPER.num_region_classes),
        region_tag_sizes=config.model.region_tag_sizes or ((_NUM_PATCHES,) if is_patched else ()),
    )
    data = dataclasses.replace(config.data, max_regions=max(config.data.max_regions, model.num_patches))
    if model == config.model:
        return config, []
    stated = (
        f"vocabulary {model.vocabulary_size}, features {model.region_feature_size}, classes {model.num_region_classes}"
    )
    return dataclasses.replace(config, model=model, data=data), [
        f"the recipe takes its sizes from the data; taken here: {stated}"
    ]


def _batch_plan(
    config: RunConfig,
    cost: SampleCost,
    trained: int,
    samples: int,
    devices: int,
    hardware: Hardware,
    utilisation: float,
) -> BatchPlan:
    shape = cost.shape(samples)
    micro_batches = max(1, math.ceil(shape.num_positions / devices / config.batch.micro_batch_tokens))
    flops = float(training_flops(config.model, shape))
    if config.engine.activation_checkpointing:
        flops += forward_flops(config.model, shape)
    if micro_batches > 1 and has_contrast(config):
        # The contrastive group spans micro-batches, so all but the first are encoded before without gradients (engine/step.py).
        flops += forward_flops(config.model, cost.rehearsed_shape(samples)) * (micro_batches - 1) / micro_batches
    seconds = flops / (devices * hardware.peak_flops * utilisation)
    days = seconds * config.schedule.total_steps / 86400
    return BatchPlan(
        global_samples=samples,
        positions_per_step=shape.num_positions,
        micro_batches=micro_batches,
        flops_per_step=flops,
        seconds_per_step=seconds,
        steps=config.schedule.total_steps,
        days=days,
        device_hours=days * 24 * devices,
        read_bytes_per_second=cost.bytes * samples / seconds,
        communication_seconds=communication_seconds(trained, devices, bytes_each=sent_bytes(config)),
    )
