"""Losses of image-text retrieval with one score per pair: a positive against negatives.

Letters: E examples, N negatives per example.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def circle_loss(positive_E: torch.Tensor, negative_EN: torch.Tensor, *, margin: float, scale: float) -> torch.Tensor:
    """[E] circle loss (Sun et al. 2020) with one positive, as in UNIMO's retrieval: no sigmoid on the scores.

    log(1 + sum over n of exp(scale * [s_n + margin]+ * (s_n - margin)) * exp(-scale * [1 + margin - s_p]+ * (s_p - 1 + margin)))

    The weights in [...]+ carry no gradient, as in the original.
    """
    negative_EN, positive_E = negative_EN.float(), positive_E.float()
    negative_weight_EN = (negative_EN.detach() + margin).clamp_min(0)
    positive_weight_E = (1 + margin - positive_E.detach()).clamp_min(0)
    negative_E = (scale * negative_weight_EN * (negative_EN - margin)).logsumexp(1)
    return functional.softplus(negative_E - scale * positive_weight_E * (positive_E - 1 + margin))


def choice_loss(positive_E: torch.Tensor, negative_EN: torch.Tensor) -> torch.Tensor:
    """[E] cross-entropy of choosing the positive among itself and its negatives."""
    scores_E1N = torch.cat((positive_E.float()[:, None], negative_EN.float()), 1)
    return scores_E1N.logsumexp(1) - scores_E1N[:, 0]
