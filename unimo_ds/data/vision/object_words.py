"""Names of the objects that a detector found in an image, as words."""

from __future__ import annotations

from collections.abc import Sequence

from unimo_ds.data.schema import Regions


def words_of(regions: Regions, names: Sequence[str], *, min_confidence: float, max_regions: int) -> str:
    """Names of regions whose best class reaches `min_confidence`, most probable first; may be empty.

    names: of the classes, empty for those without a word.
    """
    named = []
    for ids, chances in zip(regions.class_ids[:max_regions], regions.class_probabilities, strict=False):
        classes = zip(chances.tolist(), (names[number] for number in ids.tolist()), strict=True)
        # Background is no object, however probable: a detector keeps a region for its best other class.
        named.append(max(((chance, name) for chance, name in classes if name), default=(-1.0, "")))
    sure = [one for one in named if one[0] >= min_confidence]
    return " ".join(name for _, name in sorted(sure, key=lambda one: -one[0]))
