"""`unimo plan`: what a run will need, before any GPU is booked, from its recipe and, if given, the index of its data.

Each estimate states its assumptions. Parameters are exact, and so are operations for the sequences counted, except that
predicted tokens and masked regions follow from their shares; memory is the sum of weights, gradients, moments and kept
activations; time is operations / (peak * a stated utilisation).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

from unimo_ds import recipes
from unimo_ds.config import ModelConfig, RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.engine.ds_config import load, precision
from unimo_ds.models.accounting import count_parameters, forward_flops, training_flops
from unimo_ds.planning.cost import SampleCost, assumed_cost, counted_cost
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
_GIB = 2**30
_PAPER = ModelConfig()
# Assumed if no data is given.
_PATCH_SIZE, _NUM_PATCHES = 3 * 16**2, 14**2
_COMMUNICATION_GIB = 0.5
# Of a rank on a CPU, fitted to the peak memory of whole processes (docs/experiments.md, 2026-11-27): Python and its libraries;
# heap fragmentation, a factor; attention probabilities with their dropout masks, padded to buckets, a factor.
_PROCESS_GIB, _HEAP, _HOST_PROBABILITIES = 0.5, 1.2, 2.4
_BUCKET_PARAMETERS = 50_000_000
"""Parameters whose gradients are reduced together (ds_configs)."""


@dataclass(frozen=True)
class StageMemory:
    """GiB on one device under one ZeRO stage."""

    stage: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    total: float
    fits: bool


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
    devices, hardware: None: those in the recipe's name. measured: file of rows from which the utilisation is taken.

    Raises:
        UserError: unknown hardware, no devices, or a utilisation outside of (0, 1].
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
    parameters = count_parameters(config.model)
    return Plan(
        recipe=config.recipe,
        devices=devices,
        hardware=HARDWARE[hardware].name,
        utilisation=utilisation,
        encoder_parameters=parameters.encoder,
        total_parameters=parameters.total,
        memory=tuple(
            stage_memory(config, cost, stage=stage, devices=devices, hardware=HARDWARE[hardware]) for stage in _STAGES
        ),
        batches=tuple(
            _batch_plan(config, cost, samples, devices, HARDWARE[hardware], utilisation) for samples in sorted(batches)
        ),
        mix=mix_of(config, corpus) if corpus is not None else (),
        assumptions=(
            *assumptions,
            *assumed,
            *((f"utilisation {how}: {measured}",) if measured else ()),
            f"{utilisation:.3g} of {HARDWARE[hardware].peak_flops / 1e12:g} TFLOP/s a device, communication hidden (its own "
            f"column: {DEVICES_PER_NODE} devices a node, {NODE_BYTES_PER_SECOND / 1e9:g} GB/s between nodes)",
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


def stage_memory(config: RunConfig, cost: SampleCost, *, stage: int, devices: int, hardware: Hardware) -> StageMemory:
    """Memory of one device under one ZeRO stage at the recipe's own batch."""
    parameters = count_parameters(config.model).total
    is_low = _is_low(config)
    # Bytes in low precision: weights 2; gradients 2, accumulated in 4; master weights 4 and two moments of 4.
    weight_bytes, gradient_bytes, optimizer_bytes = (2, 6, 12) if is_low else (4, 4, 12 if stage else 8)
    rank_positions = cost.positions * config.batch.global_samples / devices
    positions = min(rank_positions, config.batch.micro_batch_tokens)
    weights = parameters * weight_bytes / (devices if stage >= 3 else 1)
    gradients = parameters * gradient_bytes / (devices if stage >= 2 else 1)
    optimizer = parameters * optimizer_bytes / (devices if stage >= 1 else 1)
    mean_square = cost.squared_lengths / cost.positions
    is_host = hardware.name == HARDWARE["cpu"].name
    kept = functools.partial(
        activation_bytes, value_bytes=2 if is_low else 4, is_checkpointed=config.engine.activation_checkpointing
    )
    activations = positions * kept(config.model, attended=mean_square * (_HOST_PROBABILITIES if is_host else 1.0))
    if config.model.num_image_layers:
        # The same per image input, for the image layers.
        layers = dataclasses.replace(config.model, num_layers=config.model.num_image_layers)
        attended = cost.squared_images / max(cost.regions, 1.0)
        activations += positions * (cost.regions / cost.positions) * kept(layers, attended=attended)
    buffers = _COMMUNICATION_GIB if devices > 1 and is_low else 0.0
    if is_host:
        activations *= _HEAP
        # Fine-tuning keeps its initial weights, and reads them from a file.
        copies = 8 * (config.finetune is not None) + 12 * config.checkpoint.in_background
        buffers += _PROCESS_GIB + (copies * parameters + 4 * min(parameters, _BUCKET_PARAMETERS)) / _GIB
    total = (weights + gradients + optimizer + activations) / _GIB + buffers
    return StageMemory(
        stage=stage,
        weights=weights / _GIB,
        gradients=gradients / _GIB,
        optimizer=optimizer / _GIB,
        activations=activations / _GIB,
        buffers=buffers,
        total=total,
        # A tenth is left for the allocator and the CUDA context.
        fits=total <= 0.9 * hardware.memory_gib,
    )


def _is_low(config: RunConfig) -> bool:
    return precision(load(config.engine.deepspeed_config, config, world_size=1)) != "fp32"


def activation_bytes(model: ModelConfig, *, attended: float, value_bytes: int, is_checkpointed: bool) -> float:
    """Bytes kept for the backward pass per stream position.

    A layer keeps its input, queries, keys, values, attention output, two sums before norms, the norm between, and input and
    output of the feed-forward activation; dropout masks are recomputed. attended: mean length that a position attends to.
    """
    layer = (8 * model.hidden_size + 2 * model.feed_forward_size + model.num_heads * attended) * value_bytes
    if is_checkpointed:
        return model.num_layers * model.hidden_size * value_bytes + layer
    return model.num_layers * layer


def _batch_plan(
    config: RunConfig, cost: SampleCost, samples: int, devices: int, hardware: Hardware, utilisation: float
) -> BatchPlan:
    shape = cost.shape(samples)
    micro_batches = max(1, math.ceil(shape.num_positions / devices / config.batch.micro_batch_tokens))
    flops = float(training_flops(config.model, shape))
    if config.engine.activation_checkpointing:
        flops += forward_flops(config.model, shape)
    if micro_batches > 1 and config.contrast.enabled and config.data.kind_weights.pair:
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
        communication_seconds=communication_seconds(
            count_parameters(config.model).total, devices, is_low=_is_low(config)
        ),
    )
