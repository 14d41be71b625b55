"""Several places in one text come apart as they were put together, whatever they are."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

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


def test_a_url_of_this_machine_is_its_path() -> None:
    assert locations.split("file:///data/a::s3://bucket/a::file:///b c") == ("/data/a", "s3://bucket/a", "/b c")
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", action=locations.Repeated)
    assert parser.parse_args(["--data", "file:///data/a"]).data == "/data/a"


@pytest.mark.parametrize("text", ["", "::a", "a::", "a::::b", "file://"])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="has an empty name in it; write data folders as A::B"):
        locations.split(text)


def test_an_option_that_is_given_twice_is_both() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", action=locations.Repeated)
    assert parser.parse_args([]).data is None
    assert parser.parse_args(["--data", "a"]).data == "a"
    assert parser.parse_args(["--data", "a", "--data=b::c"]).data == "a::b::c"


@pytest.mark.parametrize(
    "url", ["s3://bucket/a", "https://user:word@host:80/a.tar", "file:///data/a", "hf://datasets/a"]
)
def test_a_url_is_no_path(url: str) -> None:
    """A `Path` has lost one of its slashes."""
    cure = "give /data/a$" if url.startswith("file:") else "copy what lies there"
    named = f"^{re.escape(url)} is a URL where a path on this machine belongs; {cure}"
    for given in (url, Path(url)):
        with pytest.raises(UserError, match=named):
            locations.check_local(given)
    for value in (Path(url), [Path("a"), Path(url)]):
        with pytest.raises(UserError, match=named):
            locations.check_local_options(argparse.Namespace(folder="s3://b", output=None, images=value))


@pytest.mark.parametrize("path", ["data/train", "/a:/b", "c:/x", "a b:c", "C:", "./s3", "grid"])
def test_a_path_is_no_url(path: str) -> None:
    locations.check_local_options(argparse.Namespace(one=Path(path), several=[Path(path)]))
