"""Numbers of a run: one line a logged step in metrics.jsonl, the same in TensorBoard and trackers, a line on the terminal.

Only rank 0 writes. On resuming, what was logged after the checkpoint is cut off: no step appears twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.engine.patient_files import PatientBoard, PatientLines
from unimo_ds.engine.records import METRICS_FILE, cut_after
from unimo_ds.engine.run_directory import flatten
from unimo_ds.engine.trackers.patient import PatientTracker
from unimo_ds.utils.redact import redacted

LAST_SAMPLES = "last_samples.json"
PICTURES = "pictures"
"""Folder with the pictures of the last evaluation."""


class Embeddings(NamedTuple):
    """Vectors for TensorBoard's projector: images first, then their first captions."""

    matrix: NDArray[np.float32]
    """[m, D] of length 1."""
    labels: list[str]
    """[m] `image: CAPTION` and `text: CAPTION`."""


@dataclass(frozen=True)
class Report:
    """What an evaluation during training found. Metrics are the same on every rank; the rest is made on rank 0 alone."""

    metrics: dict[str, float]
    """`held_out/retrieval/...`, `held_out/rewrites/...`, `held_out/loss/...`, `held_out/accuracy/...`"""
    pictures: Sequence[NDArray[np.uint8]] = ()
    """[H, W, 3] each: a caption, its image, and the five images retrieved for it."""
    embeddings: Embeddings = field(default_factory=lambda: Embeddings(np.zeros((0, 0), np.float32), []))


class MetricsWriter:
    """Open for one start of a run; `start_step` is the step it resumes from, -1 for a fresh start.

    measures_again: whether this start begins with an evaluation of that step, which an earlier one may have logged and not saved.
    trackers: get the same as TensorBoard, embeddings and settings aside; whoever made them finishes them.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start_step: int,
        measures_again: bool = False,
        trackers: Sequence[PatientTracker] = (),
    ) -> None:
        self._path = run_dir / METRICS_FILE
        last_measured = start_step - measures_again
        cut_after(self._path, start_step, last_measured=last_measured)
        self._lines = PatientLines(self._path)
        board = run_dir / "tensorboard"
        _drop_embeddings(board, last_measured)
        self._board = PatientBoard(board, purge_step=start_step + 1)
        self._trackers = trackers
        self._last: dict[str, float] = {}
        self._last_step = start_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the state after `step` steps. Numbers that are not finite reach TensorBoard as they are, the file as null.

        TensorBoard and trackers get no curve of what the step had none of, such as hard negatives of data without rewrites.
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

    def write_note(self, step: int, kind: str, details: Mapping[str, Any]) -> None:
        """An event with more than numbers, such as the samples of a skipped step."""
        self._lines.write(json.dumps({"step": step, "event": kind, **details}))

    def write_last_samples(self, step: int, keys: Sequence[str]) -> None:
        """Remember what rank 0 read in its last logged step, in place of what it read before."""
        temporary = self._path.with_name(f".{LAST_SAMPLES}")
        with contextlib.suppress(OSError):  # a full disk
            temporary.write_text(json.dumps({"step": step, "samples_of_rank_0": list(keys)}) + "\n")
            temporary.rename(self._path.with_name(LAST_SAMPLES))

    def write_report(self, step: int, report: Report) -> None:
        """Metrics, pictures and embeddings of an evaluation. The newest pictures are files too, for the run's page."""
        self.write(step, report.metrics)
        folder = self._path.with_name(PICTURES)
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

    def write_settings(self, config: RunConfig) -> None:
        """Hyper-parameters with the last losses and held-out metrics, when the run is done; none where nothing was logged."""
        settings = {
            key: str(value).lower() if isinstance(value, bool) else value
            for key, value in flatten(redacted(to_dict(config))).items()
            if isinstance(value, int | float | str)
        }
        final = {
            f"final/{name}": value
            for name, value in self._last.items()
            if name.startswith(("held_out/", "loss/")) and math.isfinite(value)
        }
        if final:
            self._board.add("hparams", settings, final, run_name=".", global_step=self._last_step)

    def close(self) -> None:
        self._lines.close()
        self._board.close()


def _drop_embeddings(board: Path, step: int) -> None:
    """Those of evaluations after `step`, a folder each, into which TensorBoard's writer would put no others without a warning."""
    for folder in board.glob("[0-9]*"):
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder, ignore_errors=True)


def progress_line(step: int, total_steps: int, values: Mapping[str, float], *, seconds_per_step: float) -> str:
    """One line for the terminal: step, losses, speed, share of time spent waiting for data, time left."""
    losses = "  ".join(
        f"{name.removeprefix('loss/')} {value:.3f}"
        for name, value in values.items()
        if name.startswith("loss/") and math.isfinite(value)
    )
    left = seconds_per_step * (total_steps - step)
    return (
        f"step {step}/{total_steps}  {losses}  norm {values['gradient_norm']:.2f}  "
        f"{values['speed/tokens_per_second']:,.0f} tokens/s  data wait {values['speed/data_wait_share']:.0%}  "
        f"left {_duration(left)}"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _is_absent(name: str, values: Mapping[str, float]) -> bool:
    """Whether a number is missing because nothing was there to be measured; a loss that broke is not missing."""
    if not math.isnan(values[name]):
        return False
    return name.startswith("accuracy/") or values.get(f"count/{name.removeprefix('loss/')}") == 0
