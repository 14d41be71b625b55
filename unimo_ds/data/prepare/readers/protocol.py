"""What all importers have in common: a corpus is planned as parts, and a part gives plain records.

A part is a value that JSON can hold, and everything that its records need is in it and in the reader, so that any process can
read any part, at any time, with the same result. Planning reads names, captions and offsets; it never reads an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.schema import Regions

PART_ITEMS = 1000
"""Images of a part, and so of a shard."""

Part = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One image with or without captions, or one text, as its corpus has it."""

    name: str
    """Its id in the corpus, for the report and for people; relative file name, key or number."""
    text: str | None = None
    captions: tuple[str, ...] = ()
    image: bytes | None = None
    """Encoded, not yet looked at."""
    regions: Regions | None = None
    """Where the corpus holds region features."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldRegions:
    """The detector behind region features that a corpus brings along."""

    fingerprint: str
    """16 hexadecimal digits."""
    num_classes: int


class Reader(Protocol):
    """A corpus in one format. Readers are small values: they are sent to other processes."""

    @property
    def held_regions(self) -> HeldRegions | None:
        """Of what kind the region features are that records come with; None: an extractor makes them of the images."""
        return None

    def parts(self, report: Report) -> Iterator[Part]:
        """The corpus in parts, in a fixed order; a part of images has a list of them under `items`.

        Raises:
            UserError: inputs that are not of the format.
        """
        ...

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        """The records of a part; whatever cannot be given is named in the report.

        Raises:
            UserError: an input that changed or vanished since it was planned.
        """
        ...

    def texts(self, part: Part) -> Iterator[str]:
        """Captions or texts of a part, to learn a tokenizer from, without reading images."""
        for record in self.records(part, Report()):
            if record.text is not None:
                yield record.text


@dataclass(frozen=True)
class Annotation:
    """The captions of one image, as an annotation file has them."""

    names: tuple[str, ...]
    """What the image may be called: file name first."""
    captions: tuple[str, ...]
    number: int | None = None
    """Its id, where ids are numbers."""
    known_as: tuple[str, ...] = ()
    """Its ids in other collections: for exclusion alone."""


Place = Sequence[Any]


class Item(NamedTuple):
    """One image of a collection, not yet read."""

    name: str
    place: Place
    """Where it lies; a value that JSON can hold."""


class Pictures(Protocol):
    """A collection of images or of their region features."""

    @property
    def held_regions(self) -> HeldRegions | None:
        return None

    def items(self, report: Report) -> Iterator[Item]:
        """Everything in the collection, in a fixed order.

        Raises:
            UserError: not a collection of this kind.
        """
        ...

    def read(self, items: Sequence[Item], report: Report) -> Iterator[tuple[int, Record]]:
        """(number within `items`, record) of those that can be read; the others are named in the report."""
        ...
