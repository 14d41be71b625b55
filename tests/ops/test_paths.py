"""A path that cannot run is refused with its reason; `auto` takes the first that can and says so once."""

from __future__ import annotations

import logging

import pytest

from unimo_ds.ops.paths import choose
from unimo_ds.utils.errors import UserError


def test_auto_takes_the_first_path_that_can_run_and_logs_once(caplog):
    refusals = {"native": "there is no GPU", "plain": None, "reference": None}
    with caplog.at_level(logging.INFO, logger="unimo_ds.ops.paths"):
        assert choose("an op of this test", "auto", refusals) == "plain"
        assert choose("an op of this test", "auto", refusals) == "plain"
    assert [record.getMessage() for record in caplog.records] == [
        "an op of this test: path plain (not native: there is no GPU)"
    ]


def test_a_named_path_runs_or_is_refused():
    assert choose("op", "reference", {"plain": None, "reference": None}) == "reference"
    with pytest.raises(UserError, match="op cannot take path 'native': there is no GPU"):
        choose("op", "native", {"native": "there is no GPU", "plain": None})
    with pytest.raises(UserError, match="has no path 'nativ'; did you mean 'native'"):
        choose("op", "nativ", {"native": None})
