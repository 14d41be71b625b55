"""A folder that another command made while this one was at work is not written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimo_ds.utils.errors import UserError
from unimo_ds.utils.new_folder import put_in_place


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    made, there = tmp_path / "made", tmp_path / "there"
    for folder in (made, there):
        folder.mkdir()
        (folder / "who").write_text(folder.name)
    with pytest.raises(UserError, match=r"there already holds something .* give a new folder to --to"):
        put_in_place(made, there, option="--to")
    assert (there / "who").read_text() == "there"
    (there / "who").unlink()
    put_in_place(made, there, option="--to")
    assert (there / "who").read_text() == "made"
