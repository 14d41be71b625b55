"""A folder appears whole or not at all, and what another command made meanwhile is not written over."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from unimo_ds.utils.errors import UserError
from unimo_ds.utils.new_folder import new_folder


def make(folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    with new_folder(folder, option="--to") as made:
        (made / "who").write_text("mine")
        meanwhile()


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    there = tmp_path / "below" / "there"

    def another() -> None:
        there.mkdir()
        (there / "who").write_text("another's")

    with pytest.raises(UserError, match=r"there already holds something .* give a new folder to --to"):
        make(there, another)
    assert (there / "who").read_text() == "another's"
    with pytest.raises(UserError, match="already holds something"):
        make(there, lambda: pytest.fail("something is made"))
    (there / "who").unlink()
    make(there)
    assert (there / "who").read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["below", "there", "who"]


def test_two_of_the_same_process_number_do_not_meet(tmp_path: Path) -> None:
    """As two commands in containers; also what a killed one has left there."""
    there = tmp_path / "there"
    with pytest.raises(UserError, match="there already holds something"):
        make(there, lambda: make(there))
    assert (there / "who").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (OSError(errno.ENOSPC, "full"), UserError, "cannot write .*there: No space left on device"),
        (RuntimeError("I/O error: full (os error 28)"), UserError, "cannot write .*there: No space left on device"),
        (RuntimeError("of the program"), RuntimeError, "of the program"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_what_fails_leaves_nothing(error: BaseException, kind: type[BaseException], told: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(kind, match=told):
        make(tmp_path / "there", fail)
    assert not list(tmp_path.iterdir())
