"""Visual learning (UNIMO section 2.2): what stood at a masked region, as a feature vector and as a class distribution.

Letters: N masked regions, F feature size, C classes, K stored classes per region.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def region_regression_sum(predictions_NF: torch.Tensor, targets_NF: torch.Tensor) -> torch.Tensor:
    """Sum over regions of the squared error, averaged over the F elements of a region.

    The paper sums the squares over elements; the mean keeps 2048 of them from drowning the other losses (docs/choices.md).
    Returns a fp32 scalar.
    """
    return functional.mse_loss(predictions_NF.float(), targets_NF.float(), reduction="none").mean(-1).sum()


def region_classification_sum(
    logits_NC: torch.Tensor, class_ids_NK: torch.Tensor, probabilities_NK: torch.Tensor
) -> torch.Tensor:
    """Sum over regions of the cross-entropy against the stored class distribution, rescaled to total 1.

    class_ids_NK: [N, K] int64. probabilities_NK: [N, K] fp32, the K highest of the extractor's. Returns a fp32 scalar.
    """
    log_probabilities_NC = functional.log_softmax(logits_NC.float(), dim=-1)
    weights_NK = probabilities_NK / probabilities_NK.sum(-1, keepdim=True).clamp_min(1e-6)
    return -(weights_NK * log_probabilities_NC.gather(1, class_ids_NK)).sum()
