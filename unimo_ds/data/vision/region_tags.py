"""How many values each region tag takes, and whether a model has rows for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unimo_ds.data.schema import Regions
from unimo_ds.utils.errors import UserError

Sizes = tuple[int, ...]
"""For each tag one more than its largest index, at least 1; () for regions without tags."""


def sizes_of(regions: Regions) -> Sizes:
    """Sizes for one image's regions."""
    return () if regions.tags is None else tuple(max(largest, 0) + 1 for largest in regions.tags.max(axis=0).tolist())


def common(sizes: Iterable[Sizes]) -> Sizes:
    """The smallest that fit all of these; () for none.

    Raises:
        ValueError: they differ in their number of tags.
    """
    return tuple(max(values) for values in zip(*sizes, strict=True))


def fit(found: Sizes, tables: Sequence[int]) -> bool:
    """Whether each tag has a table, with a row for each of its indices."""
    return len(found) == len(tables) and all(size <= rows for size, rows in zip(found, tables, strict=True))


def check(found: Sizes, tables: Sequence[int], *, whose: str) -> None:
    """Refuse regions if a model with these `model.region_tag_sizes` has too few rows for them, or tables without tags.

    whose: regions they are.

    Raises:
        UserError: naming both and the cure.
    """
    if not fit(found, tables):
        numbers = f"tags of {_listed(found)} values" if found else "no tags"
        raise UserError(
            f"{whose} have {numbers}, which does not fit model.region_tag_sizes={_listed(tables) or 'none'}; set "
            f"model.region_tag_sizes={_listed(found) or 'none'}, or use the region extractor that the model was trained with"
        )


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))
