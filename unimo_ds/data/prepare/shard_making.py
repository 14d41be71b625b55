"""The task of an import: makes one shard and its index from one part of a corpus. Any process may run it, and repeat it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import texts
from unimo_ds.data.prepare.journal import read_json_object, write_json
from unimo_ds.data.prepare.readers.protocol import Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.schema import Caption, Kind, Regions, Sample
from unimo_ds.data.storage import index, shards
from unimo_ds.data.storage.shards import StoredSample
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.data.vision import extractors, images
from unimo_ds.data.vision.region_extractor import RegionExtractor
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import printable

_BATCH = 64
"""Images decoded and extracted together."""
_MOST_PIXELS = 2**28
"""Limit on pixels of images extracted together: 0.8 GB."""


@dataclass(frozen=True)
class Making:
    """Arguments shared by all shards of an import."""

    reader: Reader
    source: str
    tokenizer: tuple[Path, str]
    """File and fingerprint."""
    extractor: tuple[Path, str] | None
    """File and fingerprint. None: for texts, or records with regions."""
    keep_images: bool


def make_shard(making: Making, part_file: Path, shard: Path, entry: Path) -> None:
    """Read a part, write its shard and index, then the entry that marks it as done.

    Raises:
        UserError: an input that vanished or changed, or a failing disk.
    """
    part = read_json_object(part_file)
    if part is None:
        raise UserError(f"{part_file} is gone; begin the import again")
    report = Report()

    def refused(stored: StoredSample, reason: str) -> None:
        report.skip("a sample that cannot be stored", f"{stored.details.get('file', 'a text')}: {reason}")

    num_samples = shards.write_shard(
        shard, _samples(making, making.reader.records(part, report), report), refused=refused
    )
    if num_samples:
        index.build_index(shard, _tokenizer(*making.tokenizer), pixels=False)
    write_json(entry, {"samples": num_samples, **vars(report)})


def _samples(making: Making, records: Iterator[Record], report: Report) -> Iterator[StoredSample]:
    first = next(records, None)
    if first is None:
        return iter(())
    records = itertools.chain([first], records)
    if first.text is not None:
        return _texts(making, records, report)
    if making.extractor is None:
        return _with_regions(making, records, report)
    return _extracted(making, extractors.loaded(*making.extractor), records, report)


def _texts(making: Making, records: Iterable[Record], report: Report) -> Iterator[StoredSample]:
    def counted() -> Iterator[str]:
        for record in records:
            report.count("texts read")
            yield record.text or ""

    for piece in texts.pieces(counted(), _tokenizer(*making.tokenizer)):
        yield StoredSample(Sample(key="", kind=Kind.TEXT, source=making.source, text=piece))


def _with_regions(making: Making, records: Iterable[Record], report: Report) -> Iterator[StoredSample]:
    for record in records:
        yield _stored(making, record, record.regions, {}, report)


def _extracted(
    making: Making, extractor: RegionExtractor, records: Iterator[Record], report: Report
) -> Iterator[StoredSample]:
    for batch in batched(records, _BATCH):
        for decoded in _within_memory(_decode(batch, extractor.working_side, report)):
            found = extractor.extract([picture for _, picture in decoded])
            for (record, picture), one in zip(decoded, found, strict=True):
                try:
                    yield _stored(making, record, one, {"size": list(picture.size)}, report)
                except images.BadImage as error:
                    report.skip("an image that cannot be stored", f"{record.name}: {error}")
            decoded.clear()  # free memory before decoding more


def _within_memory(decoded: Iterator[tuple[Record, Image.Image]]) -> Iterator[list[tuple[Record, Image.Image]]]:
    """Batches of at most about `_MOST_PIXELS`: only JPEGs can be decoded at a reduced size, other images may be enormous."""
    run: list[tuple[Record, Image.Image]] = []
    for one in decoded:
        run.append(one)
        if sum(picture.width * picture.height for _, picture in run) > _MOST_PIXELS:
            yield run
            run = []
    yield run


def _stored(
    making: Making, record: Record, found: Regions | None, details: dict[str, object], report: Report
) -> StoredSample:
    captions = tuple(Caption(text) for text in record.captions)
    keeps_image = making.keep_images or (found is not None and found.patches is not None)
    jpeg = _stored_jpeg(record.image) if keeps_image and record.image is not None else None
    report.count("captions", len(captions))
    return StoredSample(
        Sample("", Kind.PAIR if captions else Kind.IMAGE, making.source, regions=found, captions=captions),
        jpeg=jpeg,
        details={"file": printable(record.name), **details, **record.details},
    )


def _decode(batch: Iterable[Record], side: int, report: Report) -> Iterator[tuple[Record, Image.Image]]:
    for record in batch:
        try:
            yield record, images.decode(record.image or b"", shrink_to=side)
        except images.BadImage as error:
            report.skip("an image that cannot be decoded", f"{record.name}: {error}")


def _stored_jpeg(data: bytes) -> bytes:
    return data if images.is_jpeg(data) else images.encode_jpeg(images.decode(data))


# A worker makes many shards of one import. The fingerprint is part of the key, since the file may be rewritten.
@functools.lru_cache(maxsize=2)
def _tokenizer(path: Path, fingerprint: str) -> Tokenizer:
    return tokenizers.load(path)
