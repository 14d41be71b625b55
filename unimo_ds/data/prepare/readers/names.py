"""Matching different names of one image, such as `train2014/COCO_train2014_000000000009.jpg` and `9`, to join and exclude."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from unimo_ds.data.prepare.readers.compact import CompactList
from unimo_ds.data.prepare.readers.files import read_json, read_lines
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.utils.errors import UserError

_TRAILING_NUMBER = re.compile(r"(\d{1,18})$")


def clean(name: str) -> str:
    return name.strip().removeprefix("./")


def _file_name(name: str) -> str:
    return PurePosixPath(clean(name)).name


def stem(name: str) -> str:
    """`train/COCO_0009.JPG` -> `coco_0009`."""
    return PurePosixPath(clean(name)).stem.lower()


def number_of(name: str) -> int | None:
    """The number at the end of a name: `COCO_train2014_000000000009.jpg` -> 9."""
    match = _TRAILING_NUMBER.search(stem(name))
    return int(match[1]) if match else None


class Annotations:
    """Captions, found by any name of their image.

    Names are tried from most to least exact: relative name, file name, file name without suffix, number at the end of the file
    name. The last only if the annotation's own file name ends in its number: otherwise that number has nothing to do with file
    names, and a hash may end in it by chance. A spelling shared by two annotations matches neither, so that no image gets
    another's captions.
    """

    def __init__(self, annotations: Iterable[Annotation]) -> None:
        self._all = CompactList()
        self._further: dict[int, list[str]] = {}
        known: dict[str, int] = {}
        for one in annotations:
            first = known.get(clean(one.names[0]), -1)
            if first >= 0:
                # Captions of one image may be spread over several lines or files.
                self._further.setdefault(first, []).extend(one.captions)
                continue
            for name in one.names:
                _enter(known, clean(name), len(self._all))
            self._all.append((one.names, one.captions, one.number, one.known_as))

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, position: int) -> Annotation:
        names, captions, number, known_as = self._all[position]
        captions += self._further.get(position, ())
        return Annotation(tuple(names), tuple(captions), number, tuple(known_as))

    def find(self, names: CompactList | Sequence[str]) -> tuple[array[int], bytearray]:
        """For images with these names: positions of their annotations (-1: none), and ranks of the spelling that matched, from
        exact (0) to least exact (3).

        To save memory with millions of names, only one spelling's table exists at a time.
        """
        positions, ranks = array("q", [-1]) * len(names), bytearray(len(names))
        left: Sequence[int] = range(len(names))
        for rank, spelling in enumerate((clean, _file_name, stem, number_of)):
            table: dict[Any, int] = {}
            for position, (mine, _, number, _) in enumerate(self._all):
                if spelling is number_of:
                    _enter(table, number if number_of(mine[0]) == number else None, position)
                    continue
                for key in map(spelling, mine):
                    _enter(table, key, position)
            for i in left:
                positions[i], ranks[i] = table.get(spelling(names[i]), -1), rank
            left = array("q", (i for i in left if positions[i] < 0))
        return positions, ranks


def _enter(table: dict[Any, int], key: Any, position: int) -> None:
    if key is not None and table.setdefault(key, position) != position:
        table[key] = -1


class Exclusion:
    """Images to be excluded, by any of their names.

    A number excludes every image with this id, or this number at the end of its name: excluding an image too many costs
    nothing, training on a test image spoils a result.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._spellings: set[str] = set()
        self._numbers: set[int] = set()
        for name in map(clean, names):
            if name.isdecimal():
                self._numbers.add(int(name))
            elif name:
                self._spellings.add(name if "/" in name else stem(name))

    def holds_name(self, name: str) -> bool:
        """Whether it is excluded by name; numbers are not compared."""
        return clean(name) in self._spellings or stem(name) in self._spellings

    def holds(self, name: str, annotation: Annotation | None = None) -> bool:
        names = [name, *(annotation.names if annotation else ()), *(annotation.known_as if annotation else ())]
        for one in names:
            if self.holds_name(one) or number_of(one) in self._numbers:
                return True
        return annotation is not None and annotation.number in self._numbers


def read_exclusion(paths: Iterable[Path]) -> Exclusion:
    """The images named in lists (first column of each line) and JSON files.

    JSON with Karpathy's splits excludes its val and test images; any other JSON must be a list of names or ids.

    Raises:
        UserError: a file that cannot be read, is not UTF-8, or names no image.
    """
    names: list[str] = []
    for path in paths:
        if path.suffix == ".json":
            found = list(_names_in_json(path))
        else:
            found = [name for _, line in read_lines(path) if (name := line.partition("\t")[0].strip())]
        if not found:
            raise UserError(f"--exclude {path} names no image; give one name or id a line")
        names += found
    return Exclusion(names)


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
