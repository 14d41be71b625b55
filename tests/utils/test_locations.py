"""Several places in one text come apart as they were put together, whatever they are."""

from __future__ import annotations

import argparse

import pytest

from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError

PLACES = (
    "data/train",
    "/disk two/with:colon",
    "https://host:80/train",
    "s3://bucket/a",
    "http://[2001:db8::1]:80/a",
    "[x]",
)


@pytest.mark.parametrize("first", PLACES)
@pytest.mark.parametrize("second", PLACES)
def test_what_was_joined_is_split(first: str, second: str) -> None:
    assert locations.split(first) == (first,)
    assert locations.split(locations.join((first, second, first))) == (first, second, first)


@pytest.mark.parametrize("text", ["", "::a", "a::", "a::::b"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="has an empty name in it; write data folders as A::B"):
        locations.split(text)


def test_an_option_that_is_given_twice_is_both() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", action=locations.Repeated)
    assert parser.parse_args([]).data is None
    assert parser.parse_args(["--data", "a"]).data == "a"
    assert parser.parse_args(["--data", "a", "--data=b::c"]).data == "a::b::c"
