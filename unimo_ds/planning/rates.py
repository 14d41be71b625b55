"""Rates used by a plan: peaks of devices, measured utilisation, and communication between nodes in a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import PEAK_TERAFLOPS

DEVICES_PER_NODE, NODE_BYTES_PER_SECOND = 8, 12.5e9
"""Eight GPUs behind one port of 100 Gb/s; traffic inside a node is not counted."""


@dataclass(frozen=True)
class Hardware:
    """One device, from its data sheet."""

    name: str
    peak_flops: float
    """FLOP/s of matrix products in training precision."""
    memory_gib: float


HARDWARE = {
    "v100": Hardware("V100 (fp16)", PEAK_TERAFLOPS["V100"] * 1e12, 32),
    "a100": Hardware("A100 (bf16)", PEAK_TERAFLOPS["A100"] * 1e12, 80),
    "h100": Hardware("H100 (bf16)", PEAK_TERAFLOPS["H100"] * 1e12, 80),
    "h200": Hardware("H200 (bf16)", PEAK_TERAFLOPS["H200"] * 1e12, 141),
    "cpu": Hardware("CPU core (fp32)", 80e9, 4),
}
_MEMORY_BYTES_PER_SECOND = {"v100": 0.9e12, "a100": 2.0e12, "h100": 3.35e12, "h200": 4.8e12}


def measured_utilisation(path: str | Path, hardware: str) -> tuple[float, str]:
    """Useful operations per second over the peak of a device, and where that comes from, in words.

    The best of this project's own rows in a file of `benchmarks/rows/`. hardware: key of HARDWARE. Rows of another GPU are
    converted if they were made with `--profile`: see `_carried_over`.

    Raises:
        UserError: no such file, not a row file, rows of another device, or no row of this project.
    """
    path = Path(path)
    try:
        content: dict[str, Any] = strict_json.parsed(path.read_bytes())
        rows = [row for row in content["rows"] if row.get("contender") == "ours" and "useful_teraflops" in row]
        where, threads = str(content["hardware"]), int(content["threads"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a row file of `python -m benchmarks.step`") from None
    if not rows:
        raise UserError(f"{path} holds no row of this project's own step; run `python -m benchmarks.step`")
    names = [name for name in HARDWARE if ("cores" in where if name == "cpu" else name.upper() in where.upper())]
    if names == [hardware]:
        devices = threads if hardware == "cpu" else 1
        best = max(float(row["useful_teraflops"]) for row in rows)
        return best * 1e12 / devices / HARDWARE[hardware].peak_flops, "measured"
    profiled = [row for row in rows if "first_step_product_seconds" in row]
    if not names or "cpu" in (hardware, names[0]) or not profiled:
        raise UserError(
            f"{path} was measured on {where}, not on {hardware}; give --hardware, or rows of that device, "
            "or of another GPU and made with --profile"
        )
    return _carried_over(profiled[0], names[0], hardware), f"carried over from {where}"


def _carried_over(row: dict[str, Any], measured: str, wanted: str) -> float:
    """Utilisation on another GPU, if time scales with peak FLOP/s for products and with memory bandwidth for other kernels, and
    idle time stays the same. Less exact for a small batch, whose host share is larger, and for kernels not bound by memory.
    """
    products, kernels = float(row["first_step_product_seconds"]), float(row["first_step_gpu_seconds"])
    idle = max(0.0, float(row["first_step_seconds"]) - kernels)
    peak = HARDWARE[wanted].peak_flops
    slower_products = HARDWARE[measured].peak_flops / peak
    slower_memory = _MEMORY_BYTES_PER_SECOND[measured] / _MEMORY_BYTES_PER_SECOND[wanted]
    seconds = products * slower_products + (kernels - products) * slower_memory + idle
    return float(row["first_step_teraflop"]) * 1e12 / seconds / peak


def communication_seconds(num_parameters: int, devices: int, *, bytes_each: int) -> float:
    """Gradients are summed between nodes and weights (or sums) sent back, once a step, at ZeRO stages 0 to 2.

    bytes_each: of a gradient and a weight together.
    """
    nodes = math.ceil(devices / DEVICES_PER_NODE)
    return num_parameters * bytes_each * (nodes - 1) / nodes / NODE_BYTES_PER_SECOND
