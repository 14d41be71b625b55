"""Saving and loading a running engine: atomically, verified before use, at any world size and ZeRO stage.

`checkpoint_folder` defines the form on disk, `state` the content. Rank 0 writes and checks; its verdicts are broadcast, so that
all ranks continue or stop together. A background save copies the state to host memory; training continues while rank 0 writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig, fingerprint, to_dict
from unimo_ds.engine import checkpoint_folder, run_lock, state
from unimo_ds.engine.checkpoint_folder import FOLDER, STATE
from unimo_ds.engine.run_directory import differs
from unimo_ds.engine.setup import Engine
from unimo_ds.engine.state import Described, OptimizerNumbers, Progress
from unimo_ds.utils import records, strict_json
from unimo_ds.utils.agreement import fail_together
from unimo_ds.utils.errors import UserError


class CheckpointError(UserError):
    """A checkpoint could not be written; earlier ones are untouched."""


@dataclass(frozen=True)
class Loaded:
    """What a run resumes from."""

    folder: Path
    progress: Progress


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on disk; only rank 0 has it."""

    step: int
    folder: Path
    stall_seconds: float
    """Time for which training stood still."""
    write_seconds: float
    """From the end of the stall until it was complete; 0 if training waited for all of it."""


class Saver:
    """Saves one checkpoint at a time. All methods are collectives; every rank calls them in the same order."""

    def __init__(self, engine: Engine, run_dir: Path, config: RunConfig) -> None:
        self._engine, self._config = engine, config
        self._run_dir, self._checkpoints = run_dir, run_dir / FOLDER
        self._communicator = engine.communicator
        self._snapshot: state.Snapshot | None = None  # its memory is reused by the next one
        self._writer: threading.Thread | None = None
        self._is_writing = False  # known to all ranks
        self._problem = ""
        self._saved: Saved | None = None

    def check_room(self) -> None:
        """Refuse to train for a checkpoint that cannot be written.

        Raises:
            UserError: on all ranks: no room, or no folder.
        """
        problem = ""
        if self._communicator.rank == 0:
            try:
                checkpoint_folder.begin(self._checkpoints, 0, state.state_bytes(self._engine)).rmdir()
            except OSError as error:
                problem = str(error)
        fail_together(self._communicator, problem)

    def save(self, progress: Progress, *, wait: bool) -> None:
        """Save the engine's state. wait: return once it is on disk, without a copy of the state in host memory.

        Call `settle` for an earlier save first.

        Raises:
            CheckpointError: on all ranks, if rank 0 could not begin, or, with `wait`, write.
            UserError: on all ranks, if another trainer has the run directory by now.
        """
        assert not self._is_writing, "settle() the save before first"
        began = time.monotonic()
        temporary = self._begin(progress)
        numbers = state.read_numbers(self._engine)
        described = _describe(self._engine, progress, numbers, self._config)
        if wait:
            entries, failure = state.write_tensors(self._engine, temporary)
            if self._communicator.rank == 0:
                self._problem = self._finish(temporary, progress, described, entries, failure)
                self._saved = Saved(progress.step, self._final(progress), time.monotonic() - began, 0.0)
            self._raise_problem()
            return
        self._snapshot = state.take_snapshot(self._engine, self._snapshot)
        self._is_writing = True
        if self._communicator.rank == 0:
            arguments = (temporary, progress, described, time.monotonic() - began)
            self._problem = f"the writer of {self._final(progress)} came to no end"  # replaced when it has
            # Not a daemon: an interpreter that exits normally waits for the checkpoint.
            self._writer = threading.Thread(target=self._write, args=arguments, name="checkpoint writer")
            self._writer.start()

    def settle(self) -> None:
        """Wait for the background save, if there is one.

        Raises:
            CheckpointError: on all ranks, if it failed.
        """
        if not self._is_writing:
            return
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self._is_writing = False
        self._raise_problem()

    def take_saved(self) -> Saved | None:
        """The checkpoint completed since the last call, if any. Local; does not wait. Always None on ranks other than 0."""
        saved, self._saved = self._saved, None
        return saved

    def _write(self, temporary: Path, progress: Progress, described: Mapping[str, Any], stall: float) -> None:
        """Runs in rank 0's writer thread. Hashing and writing release the GIL."""
        began = time.monotonic()
        assert self._snapshot is not None
        entries: dict[str, dict[str, Any]] = {}
        failure: OSError | None = None
        try:
            entries = self._snapshot.write(temporary)
        except OSError as error:
            failure = error
        self._problem = self._finish(temporary, progress, described, entries, failure)
        if not self._problem:
            self._saved = Saved(progress.step, self._final(progress), stall, time.monotonic() - began)

    def _begin(self, progress: Progress) -> Path:
        taken = ""
        if self._communicator.rank == 0:
            try:
                if holder := run_lock.hold(self._run_dir):
                    taken = (
                        f"{self._run_dir} was deleted, and {holder} trains there now; give this run another --run-dir"
                    )
                else:
                    checkpoint_folder.begin(self._checkpoints, progress.step, state.state_bytes(self._engine))
            except OSError as error:
                self._problem = f"{error}; earlier ones are intact"
        fail_together(self._communicator, taken)
        self._raise_problem()
        return checkpoint_folder.being_written(self._checkpoints, progress.step)

    def _finish(
        self,
        temporary: Path,
        progress: Progress,
        described: Mapping[str, Any],
        entries: Mapping[str, Mapping[str, Any]],
        failure: OSError | None,
    ) -> str:
        """Complete and prune on rank 0. Returns what went wrong, if anything."""
        is_best = progress.best is not None and progress.best.step == progress.step
        try:
            if failure is not None:
                raise failure
            checkpoint_folder.complete(temporary, entries, described, is_best=is_best)
        except OSError as error:
            return checkpoint_folder.give_up(temporary, error, state.state_bytes(self._engine))
        keep = self._config.checkpoint
        with contextlib.suppress(OSError):  # the new checkpoint is good even if an older one cannot be deleted
            checkpoint_folder.prune(
                self._checkpoints,
                keep_last=keep.keep_last,
                keep_every=keep.keep_every,
                newest=progress.step,
                way_back=progress.first_spike if progress.spikes_in_a_row else None,
            )
        return ""

    def _raise_problem(self) -> None:
        problem = self._communicator.broadcast_object(self._problem)
        self._problem = ""
        if problem:
            self._saved = None
            raise CheckpointError(problem)

    def _final(self, progress: Progress) -> Path:
        return self._checkpoints / checkpoint_folder.name_of(progress.step)


def load(engine: Engine, run_dir: Path, config: RunConfig, *, say: Callable[[str], None] = print) -> Loaded | None:
    """Resume from the newest good checkpoint. A collective. Returns None if the run has no checkpoint at all (a fresh start).

    Raises:
        UserError: on all ranks, if checkpoints exist but none is good, there were some but they are gone, or the good one is of
            another model.
    """
    communicator = engine.communicator
    choice: tuple[str, str, Any] = ("", "", None)
    if communicator.rank == 0:
        try:
            choice = checkpoint_folder.choose(run_dir / FOLDER, say)
            if not any(choice):
                choice = "", _lost(run_dir), None
        except (OSError, ValueError, KeyError, TypeError) as error:  # the other ranks wait for the verdict
            choice = "", f"cannot make out what is in {run_dir / FOLDER} ({error!r}); is it of another version?", None
    fail_together(communicator, choice[1])
    name, _, described = communicator.broadcast_object(choice)
    if not name:
        return None
    folder, problem = run_dir / FOLDER / name, ""
    try:
        found: Described = strict_json.typed(Described, described, where=str(folder / STATE))
        problem = _other_model(found.model, config, folder)
    except UserError as error:
        problem = f"{error}: it is of another version; continue with that one or give another --run-dir"
    fail_together(communicator, problem)
    state.read_tensors(engine, folder)
    state.write_numbers(engine, found.optimizer)
    return Loaded(folder, found.progress)


def _lost(run_dir: Path) -> str:
    """An error message if the run has saved checkpoints, which are not there: on a disk that is not mounted, or deleted. (A fresh
    start would drop its records.) May raise OSError."""
    saved = [record.step for record in records.read(run_dir / records.METRICS_FILE) if record.event == "saved"]
    if not saved:
        return ""
    return f"{run_dir / FOLDER} has lost the checkpoint of step {saved[-1]}; restore it or give another --run-dir"


def _describe(engine: Engine, progress: Progress, numbers: OptimizerNumbers, config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(
        Described(
            progress=progress,
            optimizer=numbers,
            data_position=progress.step * config.batch.global_samples,
            seed=config.seed,
            configuration_fingerprint=fingerprint(config),
            model=to_dict(config.model),
            world_size=engine.communicator.world_size,
            zero_stage=engine.zero_stage,
        )
    )


def _other_model(described: Mapping[str, Any], config: RunConfig, folder: Path) -> str:
    """An error message if the checkpoint's model differs from the configuration's; else empty."""
    mine = to_dict(config.model)
    # The origin of the weights and dropout may change, and the layout of patches belongs to the data; tensors may not change.
    free = {"initialize_from", "initialize_images_from", "hidden_dropout", "attention_dropout", "patch_columns"}
    differing = sorted(key for key in mine.keys() - free if differs(described, mine, key))
    if not differing:
        return ""
    key = differing[0]
    return (
        f"{folder} is of another model: model.{key} is {described.get(key)} in it and {mine[key]} in this run; "
        "give the configuration it was made with or another --run-dir"
    )
