"""Common to all importers: a corpus is planned as parts, and each part yields plain records.

A part is a JSON value. Part and reader together hold all that reading the records needs, so that any process can read any part
at any time with the same result. Planning reads names, captions and offsets, never an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from unimo_ds.data.prepare.report import Report
from unimo_ds.data.schema import Regions

PART_ITEMS = 1000
"""Images per part, and so per shard."""

Part = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One image with or without captions, or one text, as stored in its corpus."""

    name: str
    """Its id in the corpus, for the report: relative file name, key or number."""
    text: str | None = None
    captions: tuple[str, ...] = ()
    image: bytes | None = None
    """Encoded, not yet checked."""
    regions: Regions | None = None
    """If the corpus holds region features."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldRegions:
    """The detector that made a corpus's own region features."""

    fingerprint: str
    """16 hexadecimal digits."""
    num_classes: int


class Reader(Protocol):
    """A corpus in one format. Readers are small, since they are sent to other processes."""

    @property
    def held_regions(self) -> HeldRegions | None:
        """The detector of the records' region features; None: they have none, and an extractor makes them from the images."""
        return None

    def parts(self, report: Report) -> Iterator[Part]:
        """The corpus in parts, in a fixed order; a part with images lists them under `items`.

        Raises:
            UserError: inputs in another format.
        """
        ...

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        """The records of a part; the report names those that cannot be read.

        Raises:
            UserError: an input that changed or vanished since planning.
        """
        ...

    def texts(self, part: Part) -> Iterator[str]:
        """Captions or texts of a part, for training a tokenizer, without reading images."""
        for record in self.records(part, Report()):
            if record.text is not None:
                yield record.text


@dataclass(frozen=True)
class Annotation:
    """Captions of one image in an annotation file. Those of several with the same first name are joined."""

    names: tuple[str, ...]
    """Possible names of the image, file name first."""
    captions: tuple[str, ...]
    number: int | None = None
    """Its id, if ids are numbers."""
    known_as: tuple[str, ...] = ()
    """Its ids in other collections, only for exclusion."""


Place = Sequence[Any]


class Item(NamedTuple):
    """One image of a collection, not yet read."""

    name: str
    place: Place
    """Where to read it: a JSON value."""


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
        """(index into `items`, record) of each one that can be read; the report names the others."""
        ...
