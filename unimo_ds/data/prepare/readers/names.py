"""Names of images: `train2014/COCO_train2014_000000000009.jpg` here, `9` there. Joining and excluding compare them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.sources import Report, read_lines
from unimo_ds.utils.errors import UserError

_TRAILING_NUMBER = re.compile(r"(\d{1,18})$")


def clean(name: str) -> str:
    return name.strip().removeprefix("./")


def spellings(name: str) -> tuple[str, ...]:
    """The name as it is, without folders, and without its suffix in lower case."""
    path = PurePosixPath(clean(name))
    return clean(name), path.name, stem(name)


def stem(name: str) -> str:
    """`train/COCO_0009.JPG` -> `coco_0009`."""
    return PurePosixPath(clean(name)).stem.lower()


def number_of(name: str) -> int | None:
    """The number that a name ends in: `COCO_train2014_000000000009.jpg` -> 9."""
    match = _TRAILING_NUMBER.search(stem(name))
    return int(match[1]) if match else None


class Annotations:
    """Captions, found by any name of their image.

    Names are tried from the most exact to the least: the relative name, the file name, the file name without suffix, and, where
    the annotation has a number, the number that a file name ends in. A spelling that two annotations share finds neither, so
    that no image gets the captions of another.
    """

    def __init__(self, annotations: Iterable[Annotation]) -> None:
        self.all: list[Annotation] = []
        self._by_spelling: tuple[dict[str, int], ...] = ({}, {}, {})
        self._by_number: dict[int, int] = {}
        exact = self._by_spelling[0]
        for one in annotations:
            known = exact.get(clean(one.names[0]), -1)
            if known >= 0:
                # An image may come in several lines or files: its captions belong together.
                captions = (*self.all[known].captions, *one.captions)
                self.all[known] = Annotation(
                    self.all[known].names, captions, self.all[known].number, self.all[known].known_as
                )
                continue
            position = len(self.all)
            self.all.append(one)
            for name in one.names:
                for table, spelling in zip(self._by_spelling, spellings(name), strict=True):
                    _enter(table, spelling, position)
            if one.number is not None:
                _enter(self._by_number, one.number, position)

    def find(self, name: str) -> tuple[int, int] | None:
        """(number in `all`, how far the spelling had to be stretched) for an image of this name."""
        for rank, (table, spelling) in enumerate(zip(self._by_spelling, spellings(name), strict=True)):
            position = table.get(spelling, -1)
            if position >= 0:
                return position, rank
        number = number_of(name)
        position = self._by_number.get(number, -1) if number is not None else -1
        return (position, len(self._by_spelling)) if position >= 0 else None


def _enter(table: dict[Any, int], key: Any, position: int) -> None:
    if table.setdefault(key, position) != position:
        table[key] = -1


class Exclusion:
    """Images that must not enter, by any of their names.

    A line that is a number excludes every image that has it as an id or at the end of its name: leaving out one image too many
    costs nothing, training on one test image spoils a result.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._spellings: set[str] = set()
        self._numbers: set[int] = set()
        for name in map(clean, names):
            if name.isdecimal():
                self._numbers.add(int(name))
            elif name:
                self._spellings.add(name if "/" in name else stem(name))

    def __len__(self) -> int:
        return len(self._spellings) + len(self._numbers)

    def holds_name(self, name: str) -> bool:
        """Whether a line names it; numbers are not compared."""
        return clean(name) in self._spellings or stem(name) in self._spellings

    def holds(self, name: str, annotation: Annotation | None = None) -> bool:
        names = [name, *(annotation.names if annotation else ()), *(annotation.known_as if annotation else ())]
        for one in names:
            if self.holds_name(one) or number_of(one) in self._numbers:
                return True
        return annotation is not None and annotation.number in self._numbers


def read_exclusion(paths: Iterable[Path]) -> Exclusion:
    """The images named in lists (first column of each line) and JSON files.

    Of a JSON with Karpathy's splits, the images of val and test count; any other JSON must be a list of names or ids.

    Raises:
        UserError: a file that cannot be read, or names nothing.
    """
    names: list[str] = []
    for path in paths:
        found = list(_names_in_json(path)) if path.suffix == ".json" else list(_names_in_lines(path))
        if not found:
            raise UserError(f"--exclude {path} names no image; give one name or id a line")
        names += found
    return Exclusion(names)


def _names_in_lines(path: Path) -> Iterator[str]:
    for _, line in read_lines(path, Report()):
        name = line.partition("\t")[0].strip()
        if name:
            yield name


def _names_in_json(path: Path) -> Iterator[str]:
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        for one in content["images"]:
            if not isinstance(one, dict):
                raise UserError(f"--exclude {path} holds an image that is not an object")
            if one.get("split") in ("val", "test"):
                yield from (str(one[key]) for key in ("filename", "cocoid") if key in one)
    elif isinstance(content, list) and all(isinstance(one, str | int) for one in content):
        yield from map(str, content)
    else:
        raise UserError(f"--exclude {path} is neither a JSON list of names or ids nor a file with Karpathy's splits")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read or parsed.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}; fetch it again") from None
