"""The complete training state in one plain form: fp32 tensors by parameter name, and a few numbers.

It does not depend on world size, ZeRO stage or precision, so these may change between starts. There is no random state to
save: all randomness is a function of the seed and the position in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from unimo_ds.engine import partitions
from unimo_ds.engine.checkpoint_folder import FILES, FORMAT
from unimo_ds.engine.setup import Engine
from unimo_ds.engine.spikes import Course
from unimo_ds.engine.tensor_file import TensorFileWriter
from unimo_ds.utils.agreement import fail_together


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    metric: str
    value: float
    step: int
    measured_on: str = ""
    """Which data, and how much of it: values on other data cannot be compared. Empty: unknown."""


@dataclass(frozen=True)
class Progress:
    """Progress of the run. It implies the data position: step `n` reads from position n * global_samples on."""

    step: int = 0
    """Steps taken, skipped ones included; the next step to take has this number."""
    skipped_in_a_row: int = 0
    skipped: int = 0
    """Steps without an update since the start of the run."""
    best: Best | None = None
    loss_course: Course = field(default_factory=Course)
    gradient_course: Course = field(default_factory=Course)
    evaluation_is_due: bool = False
    """Whether a request to stop came before this step was evaluated."""
    spikes_in_a_row: int = 0
    first_spike: int = 0
    """Step of the first of `spikes_in_a_row`."""


@dataclass(frozen=True)
class OptimizerNumbers:
    """State of Adam and the loss scaler apart from tensors."""

    applied_steps: int
    scaler: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """Content of state.json."""

    progress: Progress
    optimizer: OptimizerNumbers
    model: dict[str, Any]
    """`model` of the configuration."""
    format: int = FORMAT
    # For information only:
    data_position: int = 0
    seed: int = 0
    configuration_fingerprint: str = ""
    world_size: int = 1
    zero_stage: int = 0


def read_numbers(engine: Engine) -> OptimizerNumbers:
    """Get the numbers of an engine."""
    return OptimizerNumbers(engine.applied_steps, partitions.scaler_state(engine.wrapper))


def write_numbers(engine: Engine, numbers: OptimizerNumbers) -> None:
    """Set the numbers of an engine."""
    engine.set_applied_steps(numbers.applied_steps)
    partitions.set_scaler_state(engine.wrapper, numbers.scaler)


def parameter_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Full shapes by name in the module's order, also with ZeRO-3."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
    }


def state_bytes(engine: Engine) -> int:
    """Size of a checkpoint's tensors in bytes."""
    return 4 * len(FILES) * sum(math.prod(shape) for shape in parameter_shapes(engine).values())


def write_tensors(engine: Engine, folder: Path) -> tuple[dict[str, dict[str, Any]], OSError | None]:
    """Gather every tensor and write it into `folder` on rank 0. A collective.

    Returns each file's size and hash (rank 0; empty elsewhere) and the error of writing, if any. An error does not
    interrupt the collective, since the other ranks are in it.
    """
    shapes = parameter_shapes(engine)
    entries: dict[str, dict[str, Any]] = {}
    failure: OSError | None = None
    for slot, name in FILES.items():
        if engine.communicator.rank != 0 or failure is not None:
            _visit(engine, slot, lambda *_: None)
            continue
        writer = TensorFileWriter(folder / name, shapes)
        visited: list[str] = []
        try:
            with writer:
                _visit(engine, slot, writer.write, visited)
        except OSError as error:
            failure = error
            _visit(engine, slot, lambda *_: None, visited)
        else:
            entries[name] = {"bytes": writer.num_bytes, "sha256": writer.sha256}
    return entries, failure


class Snapshot:
    """A copy of all tensors in host memory, unpartitioned, in fp32, to be written while training continues."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], *, pinned: bool) -> None:
        size = sum(math.prod(shape) for shape in shapes.values())
        self._flat = {slot: torch.empty(size, dtype=torch.float32, pin_memory=pinned) for slot in FILES}
        self._shapes = shapes

    def views(self, slot: str) -> dict[str, torch.Tensor]:
        """Views of the tensors of a slot, by name."""
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = torch.split(self._flat[slot], sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write all files; returns the size and hash of each. May raise OSError. Local."""
        entries = {}
        for slot, name in FILES.items():
            with TensorFileWriter(folder / name, self._shapes) as writer:
                for parameter_name, tensor in self.views(slot).items():
                    writer.write(parameter_name, tensor)
            entries[name] = {"bytes": writer.num_bytes, "sha256": writer.sha256}
        return entries


def take_snapshot(engine: Engine, memory: Snapshot | None) -> Snapshot | None:
    """Copy every tensor to rank 0's host memory. A collective; returns None on ranks other than 0.

    memory: an earlier snapshot to overwrite.
    """
    if engine.communicator.rank != 0:
        for slot in FILES:
            _visit(engine, slot, lambda *_: None)
        return None
    is_cuda = engine.device.type == "cuda"
    snapshot = memory or Snapshot(parameter_shapes(engine), pinned=is_cuda)
    for slot in FILES:
        views = snapshot.views(slot)

        def copy(name: str, tensor: torch.Tensor, views: dict[str, torch.Tensor] = views) -> None:
            views[name].copy_(tensor.detach(), non_blocking=is_cuda)

        _visit(engine, slot, copy)
    if is_cuda:
        torch.cuda.synchronize(engine.device)
    return snapshot


def _visit(
    engine: Engine, slot: str, take: Callable[[str, torch.Tensor], None], visited: list[str] | None = None
) -> None:
    """Call `take` with every parameter's tensor of a slot, except those in `visited`."""
    seen = visited if visited is not None else []
    for name, parameter in engine.module.named_parameters():
        if name not in seen:
            tensor = engine.masters.read(parameter, slot)
            seen.append(name)
            take(name, tensor)


def read_tensors(engine: Engine, folder: Path) -> None:
    """Load the tensors of `folder` into the engine. A collective; each rank reads the files and keeps its part.

    Raises:
        UserError: on all ranks, if any of them could not read a file or the tensors belong to another model.
    """
    problem = ""
    shapes = parameter_shapes(engine)
    for slot, name in FILES.items():
        try:
            with safetensors.safe_open(folder / name, framework="pt") as file:
                found = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
                problem = _differences(found, shapes)
                if problem:
                    break
                for parameter_name, parameter in engine.module.named_parameters():
                    engine.masters.write(parameter, slot, file.get_tensor(parameter_name))
        except (OSError, safetensors.SafetensorError) as error:
            problem = f"cannot read {folder / name}: {error}"
            break
    fail_together(engine.communicator, problem)
    engine.masters.publish()


def _differences(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return (
                f"the checkpoint is of another model: {name!r} is {found.get(name, 'missing')} in it and "
                f"{expected.get(name, 'missing')} in this one; give the configuration it was made with or another --run-dir"
            )
    return ""
