"""Can the model tell a caption from its negative rewrites? Fractions by level, with chance for comparison.

Letters: C captions, N negative rewrites.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.schema import Level

LEVELS = (Level.SENTENCE, Level.PHRASE, Level.WORD)


@dataclass(frozen=True)
class LevelAccuracy:
    """How captions score against their rewrites of one level. nan if there are none."""

    accuracy: float
    """Fraction of captions scored above every one of their rewrites."""
    chance: float
    """What `accuracy` would be if every order were equally likely."""
    pairwise: float
    """Fraction of rewrites scored below their caption; chance is one half."""
    num_captions: int
    num_rewrites: int


def accuracies_by_level(
    true_C: NDArray[np.float32],
    negative_N: NDArray[np.float32],
    caption_of_N: NDArray[np.int64],
    level_N: NDArray[np.int64],
) -> dict[Level, LevelAccuracy]:
    """One `LevelAccuracy` per level of negative rewrite.

    true_C: scores of the true captions with their images. negative_N: scores of rewrites with the same images.
    caption_of_N: the caption that each rewrite was made from. level_N: `Level` of each.

    A tie, or a score that is not a number, counts against the model.
    """
    is_below_N = negative_N < true_C[caption_of_N]
    result: dict[Level, LevelAccuracy] = {}
    for level in LEVELS:
        chosen = np.flatnonzero(level_N == level)
        counts_C = np.bincount(caption_of_N[chosen], minlength=len(true_C))
        below_C = np.bincount(caption_of_N[chosen][is_below_N[chosen]], minlength=len(true_C))
        asked = counts_C > 0
        result[level] = LevelAccuracy(
            accuracy=_mean((below_C == counts_C)[asked]),
            chance=_mean(1.0 / (1.0 + counts_C[asked])),
            pairwise=_mean(is_below_N[chosen]),
            num_captions=int(asked.sum()),
            num_rewrites=len(chosen),
        )
    return result


def metrics(accuracies: dict[Level, LevelAccuracy], prefix: str) -> dict[str, float]:
    """Flat names `PREFIX/word`, `PREFIX/word_chance`, ...; levels without rewrites are left out.

    `PREFIX/word_pairwise` exists if captions have several rewrites of the level; with one each it equals the accuracy.
    """
    result: dict[str, float] = {}
    for level, accuracy in accuracies.items():
        if accuracy.num_rewrites:
            name = f"{prefix}/{level.name.lower()}"
            result[name] = accuracy.accuracy
            result[f"{name}_chance"] = accuracy.chance
            if accuracy.num_rewrites > accuracy.num_captions:
                result[f"{name}_pairwise"] = accuracy.pairwise
    return result


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
