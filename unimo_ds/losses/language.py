"""Language learning (UNIMO section 2.3): masked prediction and sequence-to-sequence generation share one head."""

from __future__ import annotations

import torch

from unimo_ds.data.schema import LanguageObjective


def language_loss_sum(
    losses_N: torch.Tensor, objectives_N: torch.Tensor, *, objective: LanguageObjective
) -> torch.Tensor:
    """Sum of -log P(token) over the positions of one objective.

    losses_N: [N] fp32, one per predicted position. objectives_N: [N] int64 LanguageObjective. Returns a fp32 scalar.
    """
    return (losses_N * (objectives_N == int(objective))).sum()
