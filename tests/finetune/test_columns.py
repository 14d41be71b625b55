"""Columns give back what was put into them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unimo_ds.finetune.columns import Names, Ragged


@given(rows=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=8))
def test_ragged_rows_are_those_that_were_appended(rows: list[list[int]]) -> None:
    found = Ragged("i", rows)
    assert [found[index].tolist() for index in range(len(found))] == rows
    assert [found.length(index) for index in range(len(found))] == [len(row) for row in rows]
    assert found.flat.tolist() == [value for row in rows for value in row]
    backwards = found.select(reversed(range(len(rows))))
    assert [backwards[index].tolist() for index in range(len(rows))] == rows[::-1]
    assert found.flat.dtype == np.int32


ENDING = st.sampled_from(["", "0", "00", "07", "12", "-1", "9" * 18, "9" * 19, "1٣", "\n5", ":1:2"])


@given(names=st.lists(st.builds("{}{}".format, st.text(max_size=4), ENDING), max_size=8))
def test_names_are_those_that_were_appended(names: list[str]) -> None:
    found = Names(names)
    assert list(found) == names
    assert list(found.select(range(0, len(names), 2))) == names[::2]


def test_lines_of_a_file_hold_its_name_once() -> None:
    found = Names(f"train.tsv:{number}" for number in range(1, 1000))
    assert len(found._beginnings) == 1
