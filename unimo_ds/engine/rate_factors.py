"""Learning rates by part of the model: resolves `optimizer.rate_factors` for each parameter."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

from unimo_ds.utils.errors import UserError, nearest_name


def factors_of(names: Iterable[str], factors: Mapping[str, float]) -> dict[str, float]:
    """Factor on the scheduled rate of each parameter, by name: that of the longest matching key, or 1.

    factors: by part of the model, a prefix of parameter names in whole components: `layers.1` does not match `layers.10`.

    The word table belongs to `text_embedding` and is also the output matrix of the language head, so a factor of that part
    applies to both; if it is frozen, the head still trains its own `language_head` (transform, norm, bias).

    Raises:
        UserError: a key that is no part of the model (names the nearest one); a factor below 0; nothing left to train.
    """
    parts_of = {name: _parts(name) for name in names}
    known = {part for parts in parts_of.values() for part in parts}
    for key, factor in factors.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or {part.partition(".")[0] for part in known}
            raise UserError(f"optimizer.rate_factors.{key}: the model has no such part{nearest_name(key, near)}")
        if not 0 <= factor < math.inf:
            raise UserError(f"optimizer.rate_factors.{key}={factor} must be at least 0")
    found = {name: factor_of(name, factors) for name in parts_of}
    if found and not any(found.values()):
        raise UserError(
            "optimizer.rate_factors freezes the whole model; give a part that is to be trained a factor above 0"
        )
    return found


def factor_of(name: str, factors: Mapping[str, float]) -> float:
    """Factor of the parameter `name`; keys that are no part of its model are not noticed."""
    return next((float(factors[part]) for part in _parts(name) if part in factors), 1.0)


def _parts(name: str) -> list[str]:
    """`a.b.c`, `a.b`, `a`."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words), 0, -1)]
