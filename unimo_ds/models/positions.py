"""Learned patch positions at another resolution: patches of the same side, in more or fewer rows and columns.

Letters: P patches, numbered row by row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from unimo_ds.config import ModelConfig
from unimo_ds.utils.errors import UserError

Grid = tuple[int, int]
"""Rows and columns."""
_TABLE = "image_transformer.tags.0.weight"
"""[P + 1, D]: the last row is for NO_TAG (`embeddings.TagTables`)."""


def resized(positions_PD: torch.Tensor, old: Grid, new: Grid) -> torch.Tensor:
    """Positions for another grid of patches, interpolated (bicubic, as usual for Vision Transformers), fp32; unchanged if the
    grids are equal."""
    if old == new:
        return positions_PD
    image = positions_PD.float().T.reshape(1, -1, *old)
    return functional.interpolate(image, size=new, mode="bicubic", align_corners=False)[0].flatten(1).T


def note(old: ModelConfig, new: ModelConfig) -> str:
    """Note to the user on weights of a model of sizes `old` in one of sizes `new`; empty if the grids match."""
    if old.patch_grid is None or new.patch_grid is None or old.patch_grid == new.patch_grid:
        return ""
    trained, read = (f"{rows} x {columns}" for rows, columns in (old.patch_grid, new.patch_grid))
    return f"images of {read} patches, the model was trained on {trained}: positions are interpolated"


def at_resolution(
    weights: Mapping[str, torch.Tensor], old: ModelConfig, new: ModelConfig, *, where: str
) -> Mapping[str, torch.Tensor]:
    """Weights of a model of sizes `old` for one of sizes `new`: unchanged, except for positions of another patch grid.

    where: source of the weights, for messages.

    Raises:
        UserError: patches of another side, or an unknown grid.
    """
    if _TABLE not in weights or not new.num_patches:
        return weights
    if old.region_feature_size != new.region_feature_size:
        raise UserError(
            f"{where} reads patches of {old.patch_side} x {old.patch_side} pixels, the data have {new.patch_side} x "
            f"{new.patch_side}; import them with --patch-side {old.patch_side}"
        )
    if (old.num_patches, old.patch_grid) == (new.num_patches, new.patch_grid):
        return weights
    if old.patch_grid is None or new.patch_grid is None:
        unknown = old if old.patch_grid is None else new
        raise UserError(
            f"{where} has positions of {old.num_patches} patches, the data have {new.num_patches}; to interpolate them, "
            f"model.patch_columns must say how {unknown.num_patches} lie, for they make no square"
        )
    table = weights[_TABLE]
    positions_PD = resized(table[:-1], old.patch_grid, new.patch_grid)
    return {**weights, _TABLE: torch.cat((positions_PD, table[-1:].to(positions_PD)))}
