"""Images at another resolution than a model was trained at: patches of the same side, in more or fewer rows and columns.

When weights are loaded, position embeddings of patches are interpolated (`models/positions.py`); this module decides to which
data a model can be adapted.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from unimo_ds.config import RunConfig
from unimo_ds.data.schema import PatchGrid
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.utils.errors import UserError


class Patched(Protocol):
    """The part of `Corpus` used here."""

    @property
    def patch_grid(self) -> PatchGrid | None: ...


def grid_of(config: RunConfig) -> PatchGrid | None:
    """How images are cut for a model; None: it does not read patches, or their layout is not recorded."""
    if config.model.patch_grid is None or not config.model.patch_side or len(config.model.region_tag_sizes) > 1:
        return None
    grid = PatchGrid(*config.model.patch_grid, side=config.model.patch_side)
    # Other extractors also give tags, and a table may have more rows than there are patches.
    made_with = config.data.made_with.get("extractor")
    return grid if made_with in (None, PatchExtractor(grid).fingerprint) else None


def fitted(config: RunConfig, corpus: Patched) -> RunConfig:
    """`config` of a trained model, changed for images of `corpus` if their patches have its side but another grid; otherwise
    unchanged.
    """
    own = grid_of(config)
    new = None if own is None else corpus.patch_grid
    if own is None or new is None or new == own or new.side != own.side:
        return config
    model = dataclasses.replace(config.model, region_tag_sizes=(new.num_patches,), patch_columns=new.columns)
    data = dataclasses.replace(
        config.data,
        max_regions=max(config.data.max_regions, new.num_patches),
        made_with={**config.data.made_with, "extractor": PatchExtractor(new).fingerprint},
    )
    return dataclasses.replace(config, model=model, data=data)


def check(corpus: Patched, config: RunConfig, *, location: str, is_new: bool = False) -> None:
    """Refuse images that are cut differently from a model's.

    is_new: the model is still to be created from the configuration.

    Raises:
        UserError: naming both and the cure.
    """
    own = grid_of(config)
    theirs = None if own is None else corpus.patch_grid
    if own is None or theirs is None or theirs == own:
        return
    if theirs.side != own.side:
        raise UserError(
            f"{location} has patches of {theirs.side} x {theirs.side} pixels, the model reads {own.side} x {own.side}; import "
            f"the images with --patch-side {own.side}"
        )
    cure = (
        f"set model.region_tag_sizes={theirs.num_patches} and model.patch_columns={theirs.columns}"
        if is_new
        else "prepare them like those that it was trained with (`--like`)"
    )
    raise UserError(
        f"{location} has images of {theirs.rows} x {theirs.columns} patches, the model reads {own.rows} x {own.columns}; {cure}"
    )
