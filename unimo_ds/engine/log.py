"""The log of a run: one line per logged step in metrics.jsonl, the same in TensorBoard and trackers, terminal lines, traces.

Only rank 0 logs; other ranks have a log that does nothing. On resuming, records after the checkpoint are removed, so that no
step appears twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.engine import patient_files, trace, trackers
from unimo_ds.engine.metrics import Report
from unimo_ds.engine.patient_files import PatientBoard, PatientLines
from unimo_ds.engine.run_directory import flatten
from unimo_ds.utils import records
from unimo_ds.utils.records import METRICS_FILE
from unimo_ds.utils.redact import redacted
from unimo_ds.utils.whole_file import replace_file

LAST_SAMPLES = "last_samples.json"
PICTURES = "pictures"
"""Folder with the pictures of the last evaluation."""


class RunLog:
    """Rank 0's log. Call `resume` before anything but `say`, and again when the run rolls back to a checkpoint."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._folder = config, Path(config.run_dir)
        self._tracer = trace.Tracer(self._folder / trace.FOLDER, *config.logging.trace_steps)
        self._trackers: trackers.Trackers = ()
        self._open = contextlib.ExitStack()
        self._lines: PatientLines
        self._board: PatientBoard

    def say(self, text: str) -> None:
        """Print a line on the terminal."""
        patient_files.say(text)

    def traced(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Profile the block, if `step` is in `logging.trace_steps`."""
        return self._tracer.around(step)

    def resume(self, step: int, *, measures_again: bool = False) -> None:
        """Continue after `step`, -1 for a fresh start. May raise OSError: the run directory is not writable.

        measures_again: whether this start first evaluates that step, which an earlier start may have logged but not saved.
        """
        self._open.close()
        self._trackers = self._trackers or trackers.make_trackers(self._config, self.say)
        path, board, last_measured = self._folder / METRICS_FILE, self._folder / "tensorboard", step - measures_again
        cut_after(path, step, last_measured=last_measured)
        self._lines = self._open.enter_context(contextlib.closing(PatientLines(path)))
        _drop_embeddings(board, last_measured)
        self._board = self._open.enter_context(contextlib.closing(PatientBoard(board, purge_step=step + 1)))
        self._last: dict[str, float] = {}
        self._last_step = step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after `step` steps. Non-finite numbers are written unchanged to TensorBoard and as null to the file.

        TensorBoard and trackers do not get values that the step could not measure, such as hard negatives without rewrites.
        """
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}  # type: ignore[misc]
        self._lines.write(json.dumps(line))
        present = {name: value for name, value in values.items() if not _is_absent(name, values)}
        for name, value in present.items():
            self._board.add("scalar", name, value, step)
        for tracker in self._trackers:
            tracker.log(step, present)
        self._last.update(values)
        self._last_step = step

    def note(self, step: int, kind: str, **details: Any) -> None:
        """Log an event with more than numbers, such as the samples of a skipped step."""
        self._lines.write(json.dumps({"step": step, "event": kind, **details}))

    def write_last_samples(self, step: int, keys: Sequence[str]) -> None:
        """Store the keys of rank 0's samples in the last logged step, replacing the previous ones."""
        temporary = self._folder / f".{LAST_SAMPLES}"
        with contextlib.suppress(OSError):  # a full disk
            temporary.write_text(json.dumps({"step": step, "samples_of_rank_0": list(keys)}) + "\n")
            temporary.rename(self._folder / LAST_SAMPLES)

    def write_report(self, step: int, report: Report) -> None:
        """Log metrics, pictures and embeddings of an evaluation. The newest pictures are also files, for the run's page."""
        self.write(step, report.metrics)
        folder = self._folder / PICTURES
        for number, picture in enumerate(report.pictures):
            self._board.add("image", f"retrieved/{number}", picture, step, dataformats="HWC")
            with contextlib.suppress(OSError):
                folder.mkdir(exist_ok=True)
                Image.fromarray(picture).save(folder / f"{number}.jpg", quality=85)
        for tracker in self._trackers if report.pictures else ():
            tracker.show(step, report.pictures)
        if len(report.embeddings.labels):
            self._board.add(
                "embedding",
                torch.from_numpy(report.embeddings.matrix),
                [(label, label.partition(":")[0]) for label in report.embeddings.labels],
                metadata_header=["label", "kind"],
                global_step=step,
                tag="pooled",
            )
        self._board.flush()

    def write_settings(self) -> None:
        """Log hyper-parameters with the last losses and held-out metrics, at the end of the run; nothing if there are none."""
        settings = {
            key: str(value).lower() if isinstance(value, bool) else value
            for key, value in flatten(redacted(to_dict(self._config))).items()
            if isinstance(value, int | float | str)
        }
        final = {
            f"final/{name}": value
            for name, value in self._last.items()
            if name.startswith(("held_out/", "loss/")) and math.isfinite(value)
        }
        if final:
            self._board.add("hparams", settings, final, run_name=".", global_step=self._last_step)

    def finish(self, status: int | None) -> None:
        """Write everything pending. status: as in `trackers.finish`."""
        self._tracer.close()
        self._open.close()
        trackers.finish(self._trackers, status)


class _Silence:
    """A log whose methods do nothing; the result is also a context manager that does nothing."""

    def __getattr__(self, name: str) -> Callable[..., contextlib.AbstractContextManager[None]]:
        return lambda *arguments, **options: contextlib.nullcontext()


def make_log(config: RunConfig, *, rank: int) -> RunLog:
    """The log of this rank."""
    return RunLog(config) if rank == 0 else cast(RunLog, _Silence())


def cut_after(path: Path, step: int, *, last_measured: int) -> None:
    """Drop the lines of steps after `step`, of evaluations after `last_measured`, and damaged lines. Atomic."""
    kept = "".join(
        record.line
        for record in records.read(path)
        if record.event != records.DAMAGED
        and record.step <= (step if record.event or "loss/total" in record.values else last_measured)
    )
    if path.is_file() and kept != path.read_text(errors="replace"):
        replace_file(path, kept)


def _drop_embeddings(board: Path, step: int) -> None:
    """Remove the folders of evaluations after `step`; TensorBoard's writer warns if a folder exists when it writes again."""
    for folder in board.glob("[0-9]*"):
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder, ignore_errors=True)


def _is_absent(name: str, values: Mapping[str, float]) -> bool:
    """Whether a value is nan because there was nothing to measure; a loss that diverged to nan is not absent."""
    if not math.isnan(values[name]):
        return False
    return name.startswith("accuracy/") or values.get(f"count/{name.removeprefix('loss/')}") == 0
