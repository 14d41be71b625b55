"""Pairs: images or region features joined with the captions of an annotation file. Without such a file: images."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from unimo_ds.data.prepare.readers.compact import CompactList
from unimo_ds.data.prepare.readers.names import Annotations, Exclusion, read_exclusion
from unimo_ds.data.prepare.readers.protocol import PART_ITEMS, Annotation, HeldRegions, Item, Part, Pictures, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.batched import batched

AnnotationFile = Callable[[ImportSettings, Report], Iterator[Annotation]]
"""Reads the annotation files; raises UserError if one cannot be read or is in another format."""


@dataclass(frozen=True)
class _OfPictures:
    settings: ImportSettings
    pictures: Pictures

    @property
    def held_regions(self) -> HeldRegions | None:
        return self.pictures.held_regions

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        items = [Item(name, place) for name, place, _ in part["items"]]
        for i, record in self.pictures.read(items, report):
            yield replace(record, captions=tuple(part["items"][i][2]))

    def texts(self, part: Part) -> Iterator[str]:
        for _, _, captions in part["items"]:
            yield from captions


@dataclass(frozen=True)
class AnnotatedPictures(_OfPictures):
    """Pictures with their captions. Pictures without captions, and captions without a picture, are left out and reported."""

    read_annotations: AnnotationFile

    def parts(self, report: Report) -> Iterator[Part]:
        annotations = Annotations(self.read_annotations(self.settings, report))
        exclusion = read_exclusion(self.settings.exclude)
        yield from _as_parts(self._joined(annotations, exclusion, report))

    def _joined(
        self, annotations: Annotations, exclusion: Exclusion, report: Report
    ) -> Iterator[tuple[Item, Annotation]]:
        names, places = CompactList(), CompactList()
        for item in self.pictures.items(report):
            names.append(item.name)
            places.append(item.place)
        positions, ranks = annotations.find(names)
        # If several pictures match an annotation, take the one whose name fits best; among equals the first.
        best = array("q", [-1]) * len(annotations)
        for i, position in enumerate(positions):
            if position >= 0 and (best[position] < 0 or ranks[i] < ranks[best[position]]):
                best[position] = i
        for i, position in enumerate(positions):
            name = names[i]
            annotation = annotations[position] if position >= 0 else None
            if exclusion.holds(name, annotation):
                report.count("images excluded")
            elif annotation is None or not annotation.captions:
                report.skip("an image without a caption", name)
            elif best[position] != i:
                report.skip("an image that comes twice", name)
            else:
                yield Item(name, places[i]), annotation
        for position, picture in enumerate(best):
            if picture >= 0:
                continue
            annotation = annotations[position]
            if exclusion.holds(annotation.names[0], annotation):
                report.count("captioned images excluded that were not there")
            else:
                report.skip("a caption whose image is missing", annotation.names[0])


@dataclass(frozen=True)
class LonePictures(_OfPictures):
    """Pictures without captions."""

    def parts(self, report: Report) -> Iterator[Part]:
        exclusion = read_exclusion(self.settings.exclude)
        seen: set[str] = set()

        def wanted() -> Iterator[tuple[Item, Annotation]]:
            for item in self.pictures.items(report):
                if exclusion.holds(item.name):
                    report.count("images excluded")
                elif item.name in seen:
                    report.skip("an image that comes twice", item.name)
                else:
                    seen.add(item.name)
                    yield item, Annotation((item.name,), ())

        yield from _as_parts(wanted())


def _as_parts(joined: Iterator[tuple[Item, Annotation]]) -> Iterator[Part]:
    for run in batched(joined, PART_ITEMS):
        yield {"items": [[item.name, item.place, annotation.captions] for item, annotation in run]}
