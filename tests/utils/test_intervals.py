"""A number is held against the interval of its type, however deep it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

import pytest

from unimo_ds.utils import intervals
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.intervals import Count, Interval, Share


@dataclass(frozen=True)
class Inner:
    share: Share = 0.5
    odd: Annotated[int, "a remark", Interval(3, 9)] = 3


@dataclass(frozen=True)
class Outer:
    count: Count = 1
    free: float = -1e9
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Outer(count=0), "count=0 must be at least 1"),
        (Outer(inner=Inner(share=1.5)), "inner.share=1.5 must be between 0 and 1"),
        (Outer(inner=Inner(share=math.nan)), "inner.share=nan must be between 0 and 1"),
        (Outer(perhaps=Inner(odd=2)), "perhaps.odd=2 must be between 3 and 9"),
    ],
)
def test_a_number_outside_is_named_with_what_it_may_be(changed: Outer, said: str) -> None:
    with pytest.raises(UserError) as caught:
        intervals.check(changed)
    assert str(caught.value) == said


def test_both_ends_are_within() -> None:
    for share, odd in ((0.0, 3), (1.0, 9)):
        intervals.check(Outer(inner=Inner(share, odd), perhaps=Inner(share, odd)))
    intervals.check(replace(Outer(), count=10**9))
    with pytest.raises(UserError, match=r"^run\.count=-1 must"):
        intervals.check(Outer(count=-1), prefix="run.")
