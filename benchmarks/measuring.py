"""Rows of measurements: contenders interleaved in one process, median and worst of several rounds, and the machine.

A row file is JSON: what was run and on what (hardware, versions, date, commit), and flat rows, one per contender and case.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unimo_ds.utils.machine import processor_name

FOLDER = Path(__file__).parent / "rows"
_PACKAGES = (
    *("torch", "deepspeed", "transformers", "numpy", "webdataset", "megatron-energon", "litdata", "mosaicml-streaming"),
)


@dataclass
class Timing:
    """Seconds of every round."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Processor time of this process and its finished children: other load on the machine does not change it."""

    def row(self) -> dict[str, float]:
        return {
            "seconds_median": statistics.median(self.wall),
            "seconds_best": min(self.wall),
            "seconds_worst": max(self.wall),
            "processor_seconds_median": statistics.median(self.processor),
            "rounds": len(self.wall),
        }


def processor_seconds() -> float:
    """User and system time of this process, all its threads, and its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in usage)


def resident_bytes(name: str = "VmRSS") -> int:
    """Memory of this process, by its name in /proc/self/status (VmRSS, VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def interleaved(
    contenders: Mapping[str, Callable[[int], Any]],
    *,
    rounds: int,
    warm_up: int = 1,
    synchronize: Callable[[], None] = lambda: None,
    say: bool = False,
) -> dict[str, Timing]:
    """Run every contender once per round, in a new order each time. Each gets the number of the round."""
    timings = {name: Timing() for name in contenders}
    order, shuffler = list(contenders), random.Random(1)
    for number in range(-warm_up, rounds):
        shuffler.shuffle(order)
        for name in order:
            synchronize()
            wall, processor = time.perf_counter(), processor_seconds()
            contenders[name](number)
            synchronize()
            wall, processor = time.perf_counter() - wall, processor_seconds() - processor
            if number >= 0:
                timings[name].wall.append(wall)
                timings[name].processor.append(processor)
                if say:
                    print(f"  round {number}: {name} {wall:.3f} s, processor {processor:.3f} s", flush=True)
    return timings


def steady_allocator(module: str) -> None:
    """Restart `python -m module` with a CUDA allocator that does not ask the driver for memory at new shapes, unless the
    environment sets one."""
    name = "PYTORCH_CUDA_ALLOC_CONF"
    if name not in os.environ:
        environment = {**os.environ, name: "expandable_segments:True"}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


def ratio_of_rounds(slow: Timing, fast: Timing) -> dict[str, float]:
    """How many times faster: the ratio round by round, so that a machine's drift cancels out, in wall and processor time."""
    wall = [one / other for one, other in zip(slow.wall, fast.wall, strict=True)]
    processor = [one / other for one, other in zip(slow.processor, fast.processor, strict=True)]
    return {
        "ratio_median": statistics.median(wall),
        "ratio_worst": min(wall),
        "processor_ratio_median": statistics.median(processor),
        "processor_ratio_worst": min(processor),
    }


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Facts without which a figure means nothing."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def write(name: str, rows: Sequence[Mapping[str, Any]], *, device: str = "cpu", path: str | None = None) -> Path:
    """Write `benchmarks/rows/NAME.json`, or `path`. Overwrites an earlier run's."""
    target = Path(path) if path else FOLDER / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, **circumstances(device), "rows": [_rounded(row) for row in rows]}
    target.write_text(json.dumps(content, indent=1) + "\n")
    return target


def read(name: str) -> dict[str, Any]:
    """A row file, as written."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Markdown of chosen columns."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        lines.append(
            "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    features = described.read_text().split() if described.is_file() else []
    wide = "AMX" if "amx_bf16" in features else "AVX-512" if "avx512f" in features else "AVX2"
    return f"{processor_name()} ({wide}), {os.cpu_count()} cores"


def _commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("+" if dirty.stdout.strip() else "")
