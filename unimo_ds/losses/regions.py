"""Visual learning (UNIMO section 2.2): predict a masked region, as a feature vector and as a class distribution.

Letters: N masked regions, F feature size, C classes, K stored classes per region.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def region_regression_sum(predictions_NF: torch.Tensor, targets_NF: torch.Tensor) -> torch.Tensor:
    """Sum over regions of the squared error, averaged over the F elements of a region.

    The paper sums the squares over elements; with the mean, 2048 of them do not drown the other losses (docs/choices.md).
    Returns a fp32 scalar.
    """
    return functional.mse_loss(predictions_NF.float(), targets_NF.float(), reduction="none").mean(-1).sum()


def region_classification_sum(
    logits_NC: torch.Tensor, class_ids_NK: torch.Tensor, probabilities_NK: torch.Tensor
) -> torch.Tensor:
    """Sum over regions of the cross-entropy against the stored class distribution, renormalised to 1.

    class_ids_NK: [N, K] int64. probabilities_NK: [N, K] fp32, the extractor's K highest. Returns a fp32 scalar.
    """
    log_probabilities_NC = functional.log_softmax(logits_NC.float(), dim=-1)
    weights_NK = probabilities_NK / probabilities_NK.sum(-1, keepdim=True).clamp_min(1e-6)
    return -(weights_NK * log_probabilities_NC.gather(1, class_ids_NK)).sum()
