"""A path that cannot run is refused with its reason; `auto` takes the first that can and says so once."""

from __future__ import annotations

import logging

import pytest

from unimo_ds.ops.paths import Path, choose
from unimo_ds.utils.errors import UserError

PATHS = {"native": Path(1, lambda: "there is no GPU"), "plain": Path(2), "reference": Path(3)}


def test_auto_takes_the_first_path_that_can_run_and_logs_once(caplog):
    with caplog.at_level(logging.INFO, logger="unimo_ds.ops.paths"):
        assert choose("an op of this test", "auto", PATHS) == 2
        assert choose("an op of this test", "auto", PATHS) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "an op of this test: path plain (not native: there is no GPU)"
    ]


def test_a_named_path_runs_or_is_refused():
    assert choose("op", "reference", PATHS) == 3
    with pytest.raises(UserError, match="op cannot take path 'native': there is no GPU"):
        choose("op", "native", PATHS)
    with pytest.raises(UserError, match="has no path 'nativ'; did you mean 'native'"):
        choose("op", "nativ", PATHS)


def test_only_a_path_that_may_be_taken_is_asked():
    """To ask may compile the kernels."""
    path, op = Path(1, lambda size: f"no {size}"), {"plain": Path(2, lambda size: None)}
    assert choose("op", "plain", {"native": path, **op}, 5) == 2
    with pytest.raises(UserError, match="op cannot take path 'auto': no 5"):
        choose("op", "auto", {"native": path}, 5)
