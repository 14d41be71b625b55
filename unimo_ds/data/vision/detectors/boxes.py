"""Boxes of detectors in plain torch: anchors, regression, overlap, suppression.

Boxes are x1, y1, x2, y2 in pixels. `extra` is 1 if a box includes its last pixel, as in Caffe's Faster R-CNN (a box from 0 to 0
is one pixel wide), and 0 if coordinates lie between pixels, as in torchvision.

Letters: A anchors of a cell, N boxes, M other boxes, C classes.
"""

from __future__ import annotations

import math

import torch

_LARGEST_GROWTH = math.log(1000 / 16)
"""Regression may enlarge a box at most 62.5 times, so that exp does not overflow."""


def cell_anchors(base: int, ratios: tuple[float, ...], scales: tuple[int, ...]) -> torch.Tensor:
    """[A, 4] anchors around the cell at the origin, ratio by ratio, in whole pixels, as in Caffe's Faster R-CNN.

    base: pixels between cells. ratios: height / width. scales: sides in units of `base`.
    """
    centre = (base - 1) / 2
    rows = []
    for ratio in ratios:
        width = round(math.sqrt(base * base / ratio))
        height = round(width * ratio)
        for scale in scales:
            half_width, half_height = (width * scale - 1) / 2, (height * scale - 1) / 2
            rows.append((centre - half_width, centre - half_height, centre + half_width, centre + half_height))
    return torch.tensor(rows)


def grid_anchors(anchors_A4: torch.Tensor, *, height: int, width: int, stride: int) -> torch.Tensor:
    """[height * width * A, 4] anchors of every cell, row by row."""
    rows = torch.arange(height, dtype=torch.float32) * stride
    columns = torch.arange(width, dtype=torch.float32) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + anchors_A4).reshape(-1, 4)


def regress(boxes_N4: torch.Tensor, deltas_N4: torch.Tensor, *, extra: int) -> torch.Tensor:
    """[N, 4] boxes moved by (dx, dy) times their size and scaled by exp(dw, dh) (Girshick et al. 2014)."""
    size = boxes_N4[:, 2:] - boxes_N4[:, :2] + extra
    centre = boxes_N4[:, :2] + size / 2 + deltas_N4[:, :2] * size
    half = torch.exp(deltas_N4[:, 2:].clamp(max=_LARGEST_GROWTH)) * size / 2
    return torch.cat([centre - half, centre + half], dim=1)


def clip(boxes_N4: torch.Tensor, *, height: float, width: float, extra: int) -> torch.Tensor:
    """The boxes clipped to the image."""
    limits = torch.tensor([width - extra, height - extra, width - extra, height - extra], dtype=boxes_N4.dtype)
    return torch.minimum(boxes_N4.clamp(min=0), limits)


def overlaps(boxes_N4: torch.Tensor, others_M4: torch.Tensor, *, extra: int) -> torch.Tensor:
    """[N, M] intersection over union; 0 if both are empty."""
    low = torch.maximum(boxes_N4[:, None, :2], others_M4[None, :, :2])
    high = torch.minimum(boxes_N4[:, None, 2:], others_M4[None, :, 2:])
    shared = (high - low + extra).clamp(min=0).prod(-1)
    union = areas(boxes_N4, extra=extra)[:, None] + areas(others_M4, extra=extra)[None] - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


def areas(boxes_N4: torch.Tensor, *, extra: int) -> torch.Tensor:
    """[N]"""
    return (boxes_N4[:, 2:] - boxes_N4[:, :2] + extra).prod(-1)


def suppress(
    boxes_N4: torch.Tensor, scores_N: torch.Tensor, *, threshold: float, most: int, extra: int
) -> torch.Tensor:
    """Greedy non-maximum suppression: up to `most` indices, best first; equal scores go to the earlier box.

    Overlaps are only computed for boxes that are kept: some hundreds of rows, not thousands squared.
    """
    order = torch.argsort(scores_N, descending=True, stable=True)
    sorted_boxes = boxes_N4[order]
    alive = torch.ones(len(order), dtype=torch.bool)
    kept: list[int] = []
    first = 0
    while len(kept) < most:
        ahead = torch.nonzero(alive[first:])
        if not len(ahead):
            break
        first += int(ahead[0])
        kept.append(first)
        rest = sorted_boxes[first + 1 :]
        alive[first + 1 :] &= overlaps(sorted_boxes[first : first + 1], rest, extra=extra)[0] <= threshold
        first += 1
    return order[kept]


def best_unsuppressed(boxes_N4: torch.Tensor, scores_NC: torch.Tensor, *, threshold: float, extra: int) -> torch.Tensor:
    """[N] for each box the best score among the classes in which no better box suppresses it; 0 if there is none.

    All classes are suppressed at once: step i takes the ith best box of each class.
    """
    number, num_classes = scores_NC.shape
    order_NC = torch.argsort(scores_NC, dim=0, descending=True, stable=True)
    near_NN = overlaps(boxes_N4, boxes_N4, extra=extra) > threshold
    gone_CN = torch.zeros(num_classes, number, dtype=torch.bool)
    best = torch.zeros(number, dtype=scores_NC.dtype)
    classes = torch.arange(num_classes)
    for i in range(number):
        boxes_C = order_NC[i]
        kept_C = ~gone_CN[classes, boxes_C]
        scores_C = scores_NC[boxes_C, classes] * kept_C
        best.scatter_reduce_(0, boxes_C, scores_C, "amax")
        gone_CN |= near_NN[boxes_C] & kept_C[:, None]
    return best
