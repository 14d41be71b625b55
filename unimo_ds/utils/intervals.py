"""Numbers with bounds, as types: `num_layers: Count = 12`. What a setting may be is said where it is declared."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from unimo_ds.utils.errors import UserError


@dataclass(frozen=True)
class Interval:
    """Of a number, both ends included: what stands beside its type in `Annotated`."""

    low: float
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"at least {self.low}" if self.high == math.inf else f"between {self.low} and {self.high}"


Count = Annotated[int, Interval(1)]
CountOrZero = Annotated[int, Interval(0)]
NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(1e-6)]
Share = Annotated[float, Interval(0, 1)]
Dropout = Annotated[float, Interval(0, 0.95)]


def check(settings: Any, *, prefix: str = "") -> None:
    """Hold every number of a dataclass, and of those within it, against the interval of its type.

    prefix: of the keys in messages.

    Raises:
        UserError: naming the key and what it may be.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            check(value, prefix=f"{prefix}{name}.")
        interval = interval_of(hint)
        if interval is not None and value not in interval:
            raise UserError(f"{prefix}{name}={value} must be {interval}")


def interval_of(hint: Any) -> Interval | None:
    """What `Annotated` says beside a type; None: nothing of this kind."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Interval)), None)
