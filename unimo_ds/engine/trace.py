"""Traces of steps for Perfetto or chrome://tracing: the operators of rank 0 on host and device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from unimo_ds.engine.patient_files import say

FOLDER = "traces"


class Tracer:
    """Records the steps from `first` to `last`, as far as this start takes them, into one file in `folder`.

    Steps are numbered from 1, as in the log; first 0: none.
    """

    def __init__(self, folder: Path, first: int, last: int) -> None:
        self._folder, self._steps = folder, range(first, last + 1) if first else range(0)
        self._profiler: torch.profiler.profile | None = None

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Profile the block, if `step` is to be recorded."""
        if step in self._steps and self._profiler is None:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
            self._first = step
        self._newest = step
        yield
        if self._profiler is not None and step >= self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what has been recorded, if anything."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        path = self._folder / f"steps-{self._first}-{self._newest}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(path))
            say(f"traced steps {self._first} to {self._newest}: open {path} in https://ui.perfetto.dev")
        except OSError as error:
            say(f"warning: cannot write {path}: {error.strerror}; training goes on")
