"""Memory of a rank: its weights, gradients, moments and kept activations, from a run's settings and the cost of a sample."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from unimo_ds.config import ModelConfig, RunConfig
from unimo_ds.engine.ds_config import load, precision
from unimo_ds.engine.rate_factors import factor_of, factors_of
from unimo_ds.models.accounting import count_parameters
from unimo_ds.models.unimo import Unimo
from unimo_ds.planning.cost import SampleCost
from unimo_ds.planning.rates import HARDWARE, Hardware
from unimo_ds.tasks.pretraining import PretrainingTask

_GIB = 2**30
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


def frozen_parameters(config: RunConfig) -> int:
    """Number of parameters that `optimizer.rate_factors` freezes; of a fine-tuning, without those of the task's head.

    Raises:
        UserError: a factor of no part of the model that pre-trains.
    """
    factors = config.optimizer.rate_factors
    if not factors:
        return 0
    heads = PretrainingTask.of(config).make_heads(config.model)
    with torch.device("meta"):  # names and sizes; nothing is allocated
        sizes = {name: parameter.numel() for name, parameter in Unimo(config.model, heads=heads).named_parameters()}
    if config.finetune is None:
        factors_of(sizes, factors)
    return sum(size for name, size in sizes.items() if not factor_of(name, factors))


def stage_memory(
    config: RunConfig, cost: SampleCost, *, stage: int, devices: int, hardware: Hardware, frozen: int = 0
) -> StageMemory:
    """Memory of one device under one ZeRO stage at the recipe's own batch. frozen: number of parameters that are."""
    parameters = count_parameters(config.model).total
    trained = parameters - frozen
    is_low = is_low_precision(config)
    # Bytes in low precision: weights 2; gradients 2, accumulated in 4; master weights 4 and two moments of 4.
    weight_bytes, gradient_bytes, optimizer_bytes = (2, 6, 12) if is_low else (4, 4, 12 if stage else 8)
    rank_positions = cost.positions * config.batch.global_samples / devices
    positions = min(rank_positions, config.batch.micro_batch_tokens)
    weights = parameters * weight_bytes / (devices if stage >= 3 else 1)
    gradients = trained * gradient_bytes / (devices if stage >= 2 else 1)
    optimizer = trained * optimizer_bytes / (devices if stage >= 1 else 1)
    mean_square = cost.squared_lengths / cost.positions
    is_host = hardware.name == HARDWARE["cpu"].name
    kept = functools.partial(
        activation_bytes, value_bytes=2 if is_low else 4, is_checkpointed=config.engine.activation_checkpointing
    )
    attended = mean_square * (_HOST_PROBABILITIES if is_host else 1.0)
    activations = positions * kept(config.model, attended=attended)
    if rank_positions > positions and has_contrast(config) and not config.engine.activation_checkpointing:
        # While the first micro-batch's are held, the others are encoded without gradients (engine/step.py).
        activations += positions * kept(dataclasses.replace(config.model, num_layers=1), attended=attended)
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
        exact = 4 * frozen * (is_low or stage >= 3)  # frozen weights, for checkpoints (engine/frozen.py)
        buffers += _PROCESS_GIB + (copies * parameters + exact + 4 * min(trained, _BUCKET_PARAMETERS)) / _GIB
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


def has_contrast(config: RunConfig) -> bool:
    return config.contrast.enabled and config.data.kind_weights.pair > 0


def is_low_precision(config: RunConfig) -> bool:
    return precision(load(config.engine.deepspeed_config, config, world_size=1)) != "fp32"


def sent_bytes(config: RunConfig) -> int:
    """Of a gradient and a weight, as ranks send them."""
    settings = load(config.engine.deepspeed_config, config, world_size=1)
    weights = precision(settings)
    gradients = settings.get("communication_data_type", weights)
    return sum(4 if one == "fp32" else 2 for one in (gradients, weights))


def activation_bytes(model: ModelConfig, *, attended: float, value_bytes: int, is_checkpointed: bool) -> float:
    """Bytes kept for the backward pass per stream position.

    A layer keeps its input, queries, keys, values, attention output, two sums before norms, the norm between, and input and
    output of the feed-forward activation; dropout masks are recomputed. attended: mean length that a position attends to.
    """
    layer = (8 * model.hidden_size + 2 * model.feed_forward_size + model.num_heads * attended) * value_bytes
    if is_checkpointed:
        return model.num_layers * model.hidden_size * value_bytes + layer
    return model.num_layers * layer
