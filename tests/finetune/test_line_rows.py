"""Rows that are read again at each visit are those of the whole file in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimo_ds.finetune.files import numbered_lines
from unimo_ds.finetune.line_rows import LineRows
from unimo_ds.finetune.text_writing import TextRow
from unimo_ds.utils.errors import UserError

LINE = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=9)


def row(names: list[str], lines: list[str]) -> TextRow | None:
    return TextRow(names[0], (lines[0],), (lines[1],)) if lines[0].strip() else None


@given(
    pairs=st.lists(st.tuples(LINE, LINE), max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    is_closed=st.booleans(),
)
def test_rows_are_those_of_the_files(tmp_path_factory, pairs, end: str, mark: bytes, is_closed: bool):
    folder = tmp_path_factory.mktemp("rows")
    paths = folder / "a", folder / "b"
    for path, lines in zip(paths, zip(*pairs, strict=True), strict=False):
        path.write_bytes(
            mark + (end.join([*lines, ""]) if is_closed else end.join([*lines[:-1], lines[-1] + "."])).encode()
        )
    if not pairs:
        for path in paths:
            path.touch()
    whole = [
        made
        for (number, one), (_, other) in zip(numbered_lines(paths[0]), numbered_lines(paths[1]), strict=True)
        if (made := row([f"{paths[0]}:{number}"], [one, other])) is not None
    ]
    found = LineRows(paths, row)
    assert len(found) == len(whole)
    assert [found[index] for index in reversed(range(len(found)))] == whole[::-1]


def test_a_file_that_changes_under_its_reader_is_told(tmp_path: Path):
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_text("a\nb\n")
    other.write_text("c\nd\n")
    found = LineRows((one, other), row)
    one.write_text("a\n \n")
    with pytest.raises(UserError, match="changed while it was in use"):
        found[1]
