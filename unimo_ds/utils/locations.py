"""Several data folders in one string, `A::B`, for an option, a configuration field or a variable of a job script."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimo_ds.utils.errors import UserError

SEPARATOR = "::"
HELP = "data folder, or one that holds train/ and held_out/; several are blended: --data A --data B, or A::B"
_BETWEEN = re.compile(r"::(?![^\[\]/]*\])")
"""Not inside an address in brackets, `http://[::1]:8000`."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def check_local(path: str | Path) -> None:
    """Refuse a URL where a path is needed: as a path, s3://a/b is in a folder called `s3:`, which would be made.

    Raises:
        UserError: naming the URL.
    """
    if found := _URL.match(str(path)):
        rest = str(path)[found.end() :]
        cure = "copy what lies there to this machine, and what is made back"
        url = f"{found[1]}://{rest}"
        if found[1] == "file":
            url, cure = f"file:///{rest}", f"give /{rest}"
        raise UserError(f"{url} is a URL where a path on this machine belongs; {cure}")


def check_local_options(arguments: argparse.Namespace) -> None:
    """`check_local` for every option that is a path or a list of paths."""
    for value in vars(arguments).values():
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, Path):
                check_local(one)


def plain(place: str) -> str:
    """A `file://` URL as its path; anything else unchanged."""
    return place.removeprefix("file://")


def split(text: str) -> tuple[str, ...]:
    """The folders or URLs in `text`, each through `plain`, in order; without a separator, a single one.

    Raises:
        UserError: a name between separators is empty.
    """
    found = tuple(map(plain, _BETWEEN.split(text)))
    if not all(found):
        raise UserError(f"{text!r} has an empty name in it; write data folders as A{SEPARATOR}B")
    return found


def join(places: Sequence[str]) -> str:
    """The inverse of `split`."""
    return SEPARATOR.join(places)


class Repeated(argparse.Action):
    """An option that may be given several times; stores its values as one string."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, plain(values) if before is None else join((before, values)))
