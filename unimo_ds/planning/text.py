"""What `unimo plan` prints."""

from __future__ import annotations

from unimo_ds.planning import mix
from unimo_ds.planning.plan import Plan
from unimo_ds.utils.duration import duration


def to_text(result: Plan) -> str:
    """Tables for people."""
    frozen = f", {result.frozen_parameters / 1e6:.1f} M of them frozen" if result.frozen_parameters else ""
    lines = [
        f"recipe {result.recipe} on {result.devices} x {result.hardware}",
        f"parameters: {result.encoder_parameters / 1e6:.1f} M encoder, {result.total_parameters / 1e6:.1f} M with heads{frozen}",
        "",
        "memory per device, GiB   weights  gradients  optimizer  activations  buffers    total",
    ]
    for stage in result.memory:
        lines.append(
            f"  ZeRO stage {stage.stage}           {stage.weights:8.2f} {stage.gradients:10.2f} {stage.optimizer:10.2f}"
            f" {stage.activations:12.2f} {stage.buffers:8.2f} {stage.total:8.2f}{'' if stage.fits else '  does not fit'}"
        )
    lines += [
        "",
        "global batch   positions/step  micro-batches  TFLOP/step   s/step     steps       time device-hours  read MB/s   comm s",
    ]
    for batch in result.batches:
        lines.append(
            f"{batch.global_samples:12,} {batch.positions_per_step:16,} {batch.micro_batches:14,}"
            f" {batch.flops_per_step / 1e12:11.3g} {batch.seconds_per_step:8.3g} {batch.steps:9,} {duration(batch.days):>10}"
            f" {batch.device_hours:12.4g} {batch.read_bytes_per_second / 1e6:10.4g} {batch.communication_seconds:8.3g}"
        )
    return "\n".join(
        [*lines, *mix.to_lines(result.mix), "", "assumes:", *(f"  - {assumption}" for assumption in result.assumptions)]
    )
