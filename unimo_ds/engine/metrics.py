"""Numbers of a run: results of an evaluation, and a line for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Embeddings(NamedTuple):
    """Vectors for TensorBoard's projector: images first, then their first captions."""

    matrix: NDArray[np.float32]
    """[m, D], unit vectors."""
    labels: list[str]
    """[m] `image: CAPTION` and `text: CAPTION`."""


@dataclass(frozen=True)
class Report:
    """Results of an evaluation during training. Metrics are the same on every rank; only rank 0 has the rest."""

    metrics: dict[str, float]
    """`held_out/retrieval/...`, `held_out/rewrites/...`, `held_out/loss/...`, `held_out/accuracy/...`"""
    pictures: Sequence[NDArray[np.uint8]] = ()
    """[H, W, 3] each: a caption, its image, and the five images retrieved for it."""
    embeddings: Embeddings = field(default_factory=lambda: Embeddings(np.zeros((0, 0), np.float32), []))


def progress_line(step: int, total_steps: int, values: Mapping[str, float], *, seconds_per_step: float) -> str:
    """One line for the terminal: step, losses, speed, fraction of time spent waiting for data, time left."""
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
