"""Rates that a plan rests on: the share of a device's peak that was measured, and what nodes send each other in a step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from unimo_ds.utils.errors import UserError

DEVICES_PER_NODE, NODE_BYTES_PER_SECOND = 8, 12.5e9
"""Eight GPUs behind one port of 100 Gb/s; what travels inside a node is not counted."""


def measured_utilisation(path: str | Path, *, hardware: str, peak_flops: float) -> float:
    """Useful operations a second over the peak: the best of this project's own rows in a file of `benchmarks/rows/`.

    hardware: key of `planning.HARDWARE`; the file must come from such a device. peak_flops: of one device (of one core for cpu).

    Raises:
        UserError: no such file, not a row file, rows of another device, or none of this project's own.
    """
    path = Path(path)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in content["rows"] if row.get("contender") == "ours" and "useful_teraflops" in row]
        where, threads = str(content["hardware"]), int(content["threads"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a row file of `python -m benchmarks.step`") from None
    is_same = "cores" in where if hardware == "cpu" else hardware.upper() in where.upper()
    if not is_same:
        raise UserError(f"{path} was measured on {where}, not on {hardware}; give --hardware, or rows of that device")
    if not rows:
        raise UserError(f"{path} holds no row of this project's own step; run `python -m benchmarks.step`")
    devices = threads if hardware == "cpu" else 1
    return max(float(row["useful_teraflops"]) for row in rows) * 1e12 / devices / peak_flops


def communication_seconds(num_parameters: int, devices: int, *, is_low: bool) -> float:
    """Gradients summed between nodes and weights (or their sums) sent back, once a step: stages 0 to 2 move the same bytes.

    is_low: 2 bytes a number travel, else 4.
    """
    nodes = math.ceil(devices / DEVICES_PER_NODE)
    one_way = num_parameters * (2 if is_low else 4) * (nodes - 1) / nodes
    return 2 * one_way / NODE_BYTES_PER_SECOND
