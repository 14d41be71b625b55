"""Region pooling in plain torch, with the roundings of Caffe's `ROIPooling` layer (Girshick 2015).

Letters: R regions, C channels, H rows and W columns of the feature map, S bins on a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional

_REGIONS_AT_ONCE = 32
"""Regions whose bins are gathered at a time: 26 MB per corner with 1,024 channels and 14 x 14 bins."""


def pool_regions(features_CHW: torch.Tensor, boxes_R4: torch.Tensor, *, side: int, scale: float) -> torch.Tensor:
    """[R, C, side, side] the largest value in each bin of each box; 0 in a bin that lies outside the map.

    boxes_R4: pixels of the image, on any device. scale: cells per pixel.

    A bin is a rectangle of the map, and its maximum is that of the (at most) four rectangles with power-of-two sides that cover
    it. Those maxima are computed once for all places, so that a bin reads only four rows of a table.
    """
    channels, height, width = features_CHW.shape
    rows_R2S = _bin_edges(boxes_R4[:, [1, 3]].cpu(), side=side, scale=scale, size=height)
    columns_R2S = _bin_edges(boxes_R4[:, [0, 2]].cpu(), side=side, scale=scale, size=width)
    row_levels, column_levels = (_levels(edges) for edges in (rows_R2S, columns_R2S))
    table = _table(features_CHW, int(row_levels.max()) + 1, int(column_levels.max()) + 1)
    num_column_levels = int(column_levels.max()) + 1
    row_span, column_span = 1 << row_levels, 1 << column_levels
    pooled = torch.empty(len(boxes_R4), side, side, channels, dtype=features_CHW.dtype, device=features_CHW.device)
    for start in range(0, len(boxes_R4), _REGIONS_AT_ONCE):
        part = slice(start, start + _REGIONS_AT_ONCE)
        tops = (rows_R2S[part, 0], rows_R2S[part, 1] - row_span[part])
        lefts = (columns_R2S[part, 0], columns_R2S[part, 1] - column_span[part])
        level = row_levels[part][:, :, None] * num_column_levels + column_levels[part][:, None, :]
        best: torch.Tensor | None = None
        for top in tops:
            for left in lefts:
                # An empty bin may point outside the map; its value is replaced below.
                y = top.clamp(0, height - 1)[:, :, None]
                x = left.clamp(0, width - 1)[:, None, :]
                found = table[((level * height + y) * width + x).to(table.device)]
                best = found if best is None else torch.maximum(best, found)
        empty = _empty(rows_R2S[part])[:, :, None] | _empty(columns_R2S[part])[:, None, :]
        assert best is not None
        pooled[part] = best.masked_fill(empty[..., None].to(best.device), 0)
    return pooled.permute(0, 3, 1, 2)


def _bin_edges(ends_R2: torch.Tensor, *, side: int, scale: float, size: int) -> torch.Tensor:
    """[R, 2, S] first cell and end of each bin along one axis, clipped to the map.

    Cells are rounded half away from zero and bins computed in float32, as in the original: other rounding moves some bins.
    """
    scaled = ends_R2.float() * scale
    rounded = torch.where(scaled - scaled.floor() == 0.5, scaled.ceil(), scaled.round())
    first, last = rounded[:, :1], rounded[:, 1:]
    bin_size = (last - first + 1).clamp(min=1) / side
    steps = torch.arange(side, dtype=torch.float32)
    low = torch.floor(steps * bin_size) + first
    high = torch.ceil((steps + 1) * bin_size) + first
    return torch.stack([low, high], dim=1).clamp(0, size).long()


def _levels(edges_R2S: torch.Tensor) -> torch.Tensor:
    """[R, S] exponent of the largest power of two that fits into each bin."""
    lengths = (edges_R2S[:, 1] - edges_R2S[:, 0]).clamp(min=1)
    return torch.log2(lengths.float()).floor().long()


def _empty(edges_R2S: torch.Tensor) -> torch.Tensor:
    return edges_R2S[:, 1] <= edges_R2S[:, 0]


def _table(features_CHW: torch.Tensor, num_row_levels: int, num_column_levels: int) -> torch.Tensor:
    """[levels * H * W, C] maximum over 2^i rows and 2^j columns from each place on, for all i and j, j fastest."""
    maps = []
    by_rows = features_CHW
    for i in range(num_row_levels):
        if i:
            by_rows = torch.maximum(by_rows, _shifted(by_rows, rows=1 << (i - 1)))
        both = by_rows
        for j in range(num_column_levels):
            if j:
                both = torch.maximum(both, _shifted(both, columns=1 << (j - 1)))
            maps.append(both.permute(1, 2, 0).reshape(-1, features_CHW.shape[0]))
    return torch.cat(maps)


def _shifted(features_CHW: torch.Tensor, *, rows: int = 0, columns: int = 0) -> torch.Tensor:
    """The map moved up by `rows` and left by `columns`; minus infinity beyond its edge."""
    moved = features_CHW[:, rows:, columns:]
    return functional.pad(moved, (0, columns, 0, rows), value=float("-inf"))
