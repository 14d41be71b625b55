"""What one node must have before a run starts on it. Nothing here contacts another node."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.storage.open_folder import OpenFolder
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.redact import redact

_GIB = 2**30
_SAMPLED_SHARDS = 3
_READ_BYTES = 2**20
_SHARED_MEMORY_BYTES = _GIB
"""Loader workers pass batches through /dev/shm; containers often have only 64 MiB of it."""
_FOREIGN_SHARE = 0.1
"""Fraction of a GPU's memory that may be in use before the run starts."""


@dataclass(frozen=True)
class NodeReport:
    """A node's report on itself, exchanged as JSON."""

    node: str
    address: str
    """`host:port` at which it accepts test connections from the other nodes."""
    problems: tuple[str, ...] = ()
    """Each keeps a run from starting here."""
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """What must be the same on all nodes."""


def problems_of_gpus(expected: int) -> list[str]:
    """Problems, unless torch sees `expected` free GPUs of one kind and has code for them. expected 0: training on the CPU."""
    if expected == 0:
        return []
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found != expected:
        build = f"torch {torch.__version__} is a CPU build" if torch.version.cuda is None else "see nvidia-smi"
        return [f"{found} of {expected} GPUs are usable ({build})"]
    problems = []
    kinds = sorted({torch.cuda.get_device_name(index) for index in range(found)})
    if len(kinds) > 1:
        problems.append(f"GPUs of several kinds: {', '.join(kinds)}")
    for index in range(found):
        try:
            free, total = torch.cuda.mem_get_info(index)
            # A product with a known result: the driver responds, and this torch has code for the device.
            ones = torch.ones(256, 256, device=f"cuda:{index}")
            correct = bool((ones @ ones == 256).all())
        except RuntimeError as error:
            problems.append(f"GPU {index} does not work: {str(error).splitlines()[0]}")
            continue
        if not correct:
            problems.append(f"GPU {index} multiplies wrongly")
        if total - free > _FOREIGN_SHARE * total:
            problems.append(f"GPU {index} has {(total - free) / _GIB:.1f} GiB in use by somebody else")
    return problems


def problems_of_data(path: str) -> list[str]:
    """Problems, unless manifests and first and last bytes of some shards below a local `path` can be read, and sizes are as
    stated; of a URL, which names one data folder, only the manifest is read."""
    if "://" in path:
        return _problems_of_remote_data(path)
    folders = [
        folder for name in ("train", "held_out", ".") if (folder := Path(path) / name / "manifest.json").is_file()
    ]
    if not folders:
        return [f"no manifest.json in {path} or its train/"]
    for manifest_file in folders:
        try:
            shards = load_manifest(manifest_file.parent).shards
        except UserError as error:
            return [str(error)]
        step = max(1, len(shards) // _SAMPLED_SHARDS)
        for shard in shards[::step]:
            file = manifest_file.parent / shard.file
            try:
                with file.open("rb") as stream:
                    stream.read(_READ_BYTES)
                    if stream.seek(0, os.SEEK_END) != shard.bytes:
                        return [f"{file} has {stream.tell()} bytes here, {shard.bytes} by its manifest"]
                    stream.seek(max(0, shard.bytes - _READ_BYTES))
                    stream.read()
            except OSError as error:
                return [f"{file} cannot be read ({error.strerror})"]
    return []


def _problems_of_remote_data(url: str) -> list[str]:
    with tempfile.TemporaryDirectory() as cache_dir:
        try:
            OpenFolder(url, cache_dir=cache_dir)
        except UserError as error:
            return [redact(str(error))]
    return []


def problems_of_run_dir(run_dir: Path, *, min_free_bytes: int) -> list[str]:
    """Problems, unless this node can write there and enough is free."""
    probe = run_dir / f".preflight-{uuid.uuid4().hex}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(run_dir).free
    except OSError as error:
        return [f"cannot write to {run_dir} ({error.strerror})"]
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    if free < min_free_bytes:
        return [f"{free / _GIB:.1f} GiB free in {run_dir}, {min_free_bytes / _GIB:.1f} wanted (--min-free-gib)"]
    return []


def remarks_of_host() -> list[str]:
    """What slows a run down or may break it later."""
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if shared < _SHARED_MEMORY_BYTES:
        return [
            f"/dev/shm has {shared / 2**20:.0f} MiB free; loader workers want {_SHARED_MEMORY_BYTES / _GIB:.0f} GiB"
        ]
    return []


def versions_of_node() -> dict[str, str]:
    """What must be equal on all nodes: versions of Python, torch, its CUDA and the driver, and the kind of GPU."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        versions |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name(0)}
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            versions["driver"] = ",".join(sorted(set(answer.stdout.split()))) if answer.returncode == 0 else "no answer"
    return versions
