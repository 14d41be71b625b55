from __future__ import annotations

from unimo_ds.utils.batched import batched


def test_the_last_one_holds_what_is_left() -> None:
    assert list(batched(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []
