"""`unimo doctor`: what this machine has for training, and the effect of each missing part."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from unimo_ds.utils.machine import memory_gib

State = Literal["good", "absent", "bad"]

_DISTRIBUTION = "unimo_ds"
_GIB = 2**30
_MARKS = {"good": "ok", "absent": "--", "bad": "!!"}


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    state: State
    """good; absent: training works without it; bad: training on this machine fails or misleads until it is fixed."""
    found: str
    cost: str = ""
    """Effect of its absence, or how to fix it."""


def examine() -> list[Finding]:
    """Results of all checks, essentials first. Imports no heavy package but torch; changes nothing."""
    return [
        Finding("Python", "good", f"{platform.python_version()} at {sys.executable}"),
        *_pinned_packages(importlib.metadata.requires(_DISTRIBUTION) or []),
        Finding("processors", "good", f"{len(os.sched_getaffinity(0))} cores, {memory_gib():.0f} GiB memory"),
        *_gpus(),
        _program("CUDA toolkit (nvcc)", "nvcc", "native kernels cannot be built; the plain paths run instead"),
        _program(
            "C++ compiler (g++)",
            "g++",
            "neither the kernels nor DeepSpeed's Adam can be compiled; torch's AdamW needs neither",
        ),
        _program("ninja", "ninja", "DeepSpeed's Adam cannot be compiled; torch's AdamW, the default, can be used"),
        _program("mpirun", "mpirun", "no launch through MPI; deepspeed, torchrun and srun work"),
        _program("srun", "srun", "no Slurm here; the slurm/ scripts cannot be submitted from this machine"),
        _program("numactl", "numactl", "`deepspeed --bind_cores_to_rank` fails; leave that flag out"),
        _apex(),
        _threads(),
    ]


def is_fit(findings: Iterable[Finding]) -> bool:
    """Whether this machine can train."""
    return all(finding.state != "bad" for finding in findings)


def to_text(findings: Iterable[Finding]) -> str:
    """The findings as a table for the terminal."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]}  {finding.name:<22} {finding.found}")
        if finding.cost:
            lines.append(f"{'':26}{finding.cost}")
    return "\n".join(lines)


def to_dict(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings as plain values for JSON."""
    listed = list(findings)
    return {"fit": is_fit(listed), "findings": [asdict(finding) for finding in listed]}


def _pinned_packages(requirements: Iterable[str]) -> list[Finding]:
    """Compare each runtime requirement of the distribution with the installed version."""
    findings = []
    for requirement in requirements:
        if ";" in requirement:  # for an extra or another platform
            continue
        matched = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(?:==\s*(\S+))?.*", requirement)
        if matched is None:
            continue
        findings.append(_package(matched.group(1), matched.group(2)))
    return findings


def _package(name: str, pinned: str | None) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        cost = f"pip install '{name}=={pinned}'" if pinned else f"pip install {name}"
        return Finding(name, "bad", "not installed", cost)
    # A local part (+cpu, +cu126) identifies the build, not the release.
    if pinned is not None and version.split("+")[0] != pinned:
        return Finding(name, "good", version, f"tested with {pinned}")
    return Finding(name, "good", version)


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            return [Finding("GPU", "bad", "there, but this torch is a CPU build", "install the CUDA build of torch")]
        return [
            Finding(
                "GPU",
                "absent",
                "none that torch can use",
                "training runs on the CPU, which suffices for the recipes demo and small",
            )
        ]
    return [
        gpu_finding(
            index,
            properties.name,
            (properties.major, properties.minor),
            properties.total_memory / _GIB,
            torch.cuda.get_arch_list(),
        )
        for index in range(torch.cuda.device_count())
        for properties in [torch.cuda.get_device_properties(index)]
    ]


def gpu_finding(
    index: int, name: str, capability: tuple[int, int], memory_gib: float, architectures: Iterable[str]
) -> Finding:
    """One GPU: its precision by compute capability, and whether this torch has code for it."""
    # torch.cuda.is_bf16_supported() is true on a V100, by emulation; so use the capability.
    precision = "bf16" if capability >= (8, 0) else "fp16"
    found = f"{name}, {memory_gib:.0f} GiB, compute capability {capability[0]}.{capability[1]}: use {precision}"
    label = f"GPU {index}"
    if not any(_runs_on(tag, capability) for tag in architectures):
        wanted = f"sm_{capability[0]}{capability[1]}"
        cure = "install a torch build that has it (for V100: pip install -r requirements-v100.txt)"
        return Finding(label, "bad", found, f"this torch has no code for {wanted}; {cure}")
    return Finding(label, "good", found)


def _runs_on(tag: str, capability: tuple[int, int]) -> bool:
    """sm_XY is machine code for X.Z with Z >= Y; compute_XY is PTX for anything from X.Y on."""
    matched = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", tag)
    if matched is None:
        return False
    built_for = (int(matched.group(2)), int(matched.group(3)))
    return built_for <= capability and (matched.group(1) == "compute" or built_for[0] == capability[0])


def _program(label: str, program: str, cost: str) -> Finding:
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        return Finding(label, "absent", "not found", cost)
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(label, "absent", f"{path} does not answer ({error.__class__.__name__})", cost)
    lines = [line for line in output.splitlines() if re.search(r"\d+\.\d+", line)]
    return Finding(label, "good", f"{lines[-1].strip() if lines else 'version unknown'} ({path})")


def _apex() -> Finding:
    """Distinguishes NVIDIA's apex from the unrelated package of that name by its files, without importing either."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return Finding(
            "NVIDIA apex", "absent", "not installed", "the optimizers apex_adam and apex_lamb cannot be used; adamw can"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers" / "fused_adam.py").is_file() for folder in folders):
        cure = "pip uninstall apex; NVIDIA's is built from source"
        return Finding("NVIDIA apex", "bad", "another project's package called apex", cure)
    if importlib.util.find_spec("amp_C") is None:
        cost = "apex_adam and apex_lamb cannot be used; build it with its CUDA extensions, or use adamw"
        return Finding("NVIDIA apex", "absent", "installed without its CUDA extensions", cost)
    return Finding("NVIDIA apex", "good", "with CUDA extensions")


def _threads() -> Finding:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None and not torch.cuda.is_available():
        cost = (
            "two ranks on one CPU each take all cores and slow down several times, unless their recipe sets engine.threads "
            "(demo and small do); export OMP_NUM_THREADS=1"
        )
        return Finding("OMP_NUM_THREADS", "absent", "not set", cost)
    return Finding("OMP_NUM_THREADS", "good", value or "not set")
