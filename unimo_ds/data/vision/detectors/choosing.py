"""Which of a detector's boxes become regions: the rule of bottom-up attention (Anderson et al. 2018), also UNIMO's.

A box is scored by its best class among those in which no better box suppresses it. Boxes of at least `confidence` are kept, but
no fewer than `fewest` (then the best ones, whatever their score) and no more than `most`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimo_ds.data.vision.detectors import boxes
from unimo_ds.utils.errors import UserError


@dataclass(frozen=True)
class Choosing:
    """Numbers of the rule."""

    confidence: float = 0.2
    overlap: float = 0.3
    """Intersection over union above which a box suppresses a worse one of its class."""
    fewest: int = 10
    most: int = 100

    def check(self) -> None:
        """
        Raises:
            UserError: numbers that contradict each other.
        """
        if not 1 <= self.fewest <= self.most:
            raise UserError(f"boxes kept per image must be 1 <= fewest <= most, not {self.fewest} and {self.most}")
        if not (0 <= self.confidence <= 1 and 0 <= self.overlap <= 1):
            raise UserError(f"confidence {self.confidence} and overlap {self.overlap} must lie between 0 and 1")


def choose(
    boxes_N4: torch.Tensor, probabilities_NC: torch.Tensor, choosing: Choosing, *, background: int, extra: int
) -> torch.Tensor:
    """Indices of the boxes kept: in their order if `confidence` decided, best first if `fewest` or `most` did.

    background: the class that is ignored.
    """
    scores_NC = torch.cat([probabilities_NC[:, :background], probabilities_NC[:, background + 1 :]], dim=1)
    best = boxes.best_unsuppressed(boxes_N4, scores_NC, threshold=choosing.overlap, extra=extra)
    sure = torch.nonzero(best >= choosing.confidence).flatten()
    if choosing.fewest <= len(sure) <= choosing.most:
        return sure
    number = choosing.fewest if len(sure) < choosing.fewest else choosing.most
    return torch.argsort(best, descending=True, stable=True)[:number]
